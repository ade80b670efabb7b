"""What a check is, how a list of them is run, and the checks that defenses and attacks share."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from pydantic import ValidationError

from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.engine.run import run_evaluation
from bench.errors import BadInput, one_line
from bench.noise import generators, isolated
from bench.results.store import Store, read_record
from bench.spec import canonical, parse, read_params, spelled_out

IMAGES = 12
"""How many images a contract is checked on."""

C = TypeVar("C")
Check = Callable[[C], None]
"""Raises `Broken` where a plugin breaks its contract. Its name and the first paragraph of its
docstring are shown.
"""


class Broken(AssertionError):
    """A plugin breaks its contract: one line that says what is wrong and how to fix it."""


class Unbuilt(Exception):
    """A defense cannot be built, so nothing else can be said of it."""


@dataclass(frozen=True)
class Verdict:
    """What came of one check.

    Attributes:
        name: the check's name.
        outcome: `ok`, `FAIL`, or `skip` where the defense cannot be built.
        message: the promise that was kept, or what is wrong and how to fix it.
    """

    name: str
    outcome: str
    message: str


def name_of(check: Check[Any]) -> str:
    """The name of a check, in words: `rows stand alone`."""
    return cast(Any, check).__name__.replace("_", " ")  # type: ignore[no-any-return]


def examine(checks: Sequence[Check[C]], case: C) -> Iterator[Verdict]:
    """Run checks one after the other, each for itself."""
    for check in checks:
        outcome, message = "ok", _promise(check)
        try:
            check(case)
        except Unbuilt:
            outcome, message = "skip", "it cannot be built"
        except Broken as error:
            outcome, message = "FAIL", str(error)
        except Exception as error:
            outcome, message = "FAIL", f"it fails with {one_line(error)}: fix it"
        yield Verdict(name_of(check), outcome, message)


def _promise(check: Check[Any]) -> str:
    """The first paragraph of a check's docstring, in one line."""
    return " ".join((inspect.getdoc(check) or "").partition("\n\n")[0].split())


def demand(held: bool, message: str) -> None:
    """Raise `Broken` with this message unless `held`."""
    if not held:
        raise Broken(message)


def check_round_trip(plugin: Any, positional: str | None) -> None:
    """The parameters come out of their printed spec again."""
    kind, params = type(plugin).Params, plugin.params
    for text in (spelled_out("plugin", params), canonical("plugin", params, positional)):
        try:
            back = read_params(kind, parse(text), "it", positional)
        except BadInput as error:
            raise Broken(
                f"the parameters print as {text!r}, which cannot be read back ({error}): "
                "use bool, int, float, str or bench.spec.Number and Numbers"
            ) from error
        demand(
            back == params,
            f"the parameters print as {text!r}, which reads as {back!r}: use types that survive as "
            "text",
        )


def check_bad_parameters(plugin: Any, positional: str | None) -> None:
    """An unknown parameter and a senseless value are refused by `BadInput`."""
    kind = type(plugin).Params
    demand(
        _refuses_unknown(kind),
        "an unknown parameter is accepted, so a typo would go unseen: leave extra='forbid' of "
        "bench's Params alone",
    )
    for key in kind.model_fields:
        error = _refusal(kind, key, positional)
        refused = error is None or isinstance(error, BadInput)
        demand(
            refused,
            f"a senseless {key!r} fails with {one_line(error or Exception())}: let a validator "
            "raise ValueError",
        )


def _refuses_unknown(kind: Any) -> bool:
    values = {
        key: field.get_default()
        for key, field in kind.model_fields.items()
        if not field.is_required()
    }
    try:
        kind(**values, no_such_parameter=1)
    except ValidationError as error:
        return any(problem["type"] == "extra_forbidden" for problem in error.errors())
    return False


def _refusal(kind: Any, key: str, positional: str | None) -> Exception | None:
    """What reading a senseless value of a parameter raises."""
    try:
        read_params(kind, parse(f'plugin:{key}="(no sense"'), "it", positional)
    except Exception as error:
        return error
    return None


def check_description(plugin: Any) -> None:
    """The class has a docstring, its card a paper or a note, and its version is a positive
    integer.
    """
    kind = type(plugin)
    demand(
        bool((kind.__doc__ or "").strip()),
        f"{kind.__name__} has no docstring, which `bench list` shows: write one line",
    )
    card = kind.card
    demand(
        bool(card.paper or card.note),
        f"{kind.__name__}.card is empty: set card = Card(paper=..., note=...)",
    )
    right = isinstance(kind.version, int) and kind.version >= 1
    demand(
        right,
        f"{kind.__name__}.version is {kind.version!r}: use 1, and raise it when the numbers may "
        "change",
    )


def check_engine(evaluation: Evaluation) -> None:
    """The engine runs a few images end to end and stores a record that can be read."""
    with tempfile.TemporaryDirectory() as folder, isolated(0):
        try:
            record = run_evaluation(evaluation, Store(Path(folder)), Execution())
        except Exception as error:
            raise Broken(
                f"the engine cannot run it ({one_line(error)}): `bench run` shows the whole "
                "traceback in a file"
            ) from error
        stored = read_record(Path(folder) / f"{record.stem}.json")
        demand(
            stored == record,
            "its record does not come out of its file again: keep identity and findings plain",
        )


def check_generators(run: Callable[[], Any], what: str) -> None:
    """Nothing reads or moves a global random generator."""
    outcomes = []
    for seed in (1, 2, 1):
        with isolated(seed):
            before = generators()
            outcomes.append(run())
            still = generators() == before
        demand(
            still,
            f"{what} draws from a global generator (torch, NumPy or Python): take every number "
            "from `noise`",
        )
    reads = torch.equal(outcomes[0], outcomes[2]) and not torch.equal(outcomes[0], outcomes[1])
    demand(not reads, f"{what} depends on a global generator: take every number from `noise`")
