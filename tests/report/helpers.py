"""Committed records, and records with given verdicts."""

import json
from pathlib import Path

import numpy as np

from bench.results.arrays import Bools
from bench.results.metrics import measure
from bench.results.outcomes import Outcomes
from bench.results.record import Record
from bench.results.store import read_record, to_json
from bench.storage.identity import identity_hash
from tests.results.helpers import matrix

RECORDS = Path(__file__).parents[2] / "leaderboards" / "records" / "mnist5k"


FRESH, EOT, REPLAY = (
    next(
        path
        for path in sorted(RECORDS.glob("*random-resize--pgd--*.json"))
        if read_record(path).title["randomness"] == randomness
    )
    for randomness in ("fresh", "eot:k=20", "replay")
)


BIT_DEPTH = next(
    path
    for path in sorted(RECORDS.glob("*bit-depth--pgd--*.json"))
    if read_record(path).title["gradient"] == "full"
)


UNDEFENDED = next(RECORDS.glob("*undefended--pgd--*.json"))


def made(
    fresh: Bools,
    replayed: Bools | None = None,
    *,
    seed: int = 0,
    randomness: str | None = None,
    attack: str = "pgd",
    **identity,
) -> Record:
    """A record with these verdicts (and every clean answer right), two classes."""
    base = json.loads(REPLAY.read_text())
    n = len(fresh)
    labels = np.arange(n) % 2
    randomness = randomness or ("fresh" if replayed is None else "replay")
    answers = [
        np.where(right, labels[:, None], 1 - labels[:, None])
        for right in (np.ones_like(fresh), fresh)
    ]
    fixed_draws = (
        np.empty((n, 0), dtype=int)
        if replayed is None
        else np.where(replayed, labels[:, None], 1 - labels[:, None])
    )
    outcomes = Outcomes.of(2, np.arange(n), labels, *answers, fixed_draws)
    whole = {
        **base["identity"],
        "randomness": randomness,
        "judged_draws": fresh.shape[1],
        **identity,
    }
    whole["attack"] = {**whole["attack"], "name": attack}
    whole["dataset"] = {**whole["dataset"], "n": n}
    whole["seeds"] = {**whole["seeds"], "attack": seed}
    return Record.model_validate(
        {
            **base,
            "identity": whole,
            "id": identity_hash(whole),
            "title": {
                **base["title"],
                "randomness": randomness,
                "seed": str(seed),
                "attack": attack,
                "n": str(n),
            },
            "scale": {"n": n, "available": max(n + 1, 1000), "reduced": True},
            "outcomes": outcomes,
            "metrics": measure(outcomes, by_gradient=False),
        }
    )


def stored(folder: Path, *records: Record) -> list[str]:
    for record in records:
        (folder / f"{record.stem}.json").write_bytes(to_json(record))
    return [str(folder / f"{record.stem}.json") for record in records]


RIGHT, HALF, WRONG = (
    matrix(*["1111"] * 100),
    matrix(*["1111", "0000"] * 50),
    matrix(*["0000"] * 100),
)


FIXED_25 = np.array([[i % 4 == 0] for i in range(100)])


LESS = matrix(*["1111"] * 40, *["0000"] * 60)


def record(defense, verdicts, build=0, attack="pgd", **changes) -> Record:
    one = made(verdicts, attack=attack, **changes)
    identity = {
        **one.identity,
        "defense": {"name": defense},
        "seeds": {**one.identity["seeds"], "build": build},
    }
    title = {**one.title, "defense": defense}
    return one.model_copy(
        update={"identity": identity, "id": identity_hash(identity), "title": title}
    )
