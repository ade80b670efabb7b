"""`bench show`: one record under every aggregation rule, or several attacks on one defense side by
side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.report import attacks, one_record
from bench.results.record import Record
from bench.results.store import is_failure, read_failure, read_record


def read(paths: Sequence[Path]) -> list[Record]:
    """The records in these files, each evaluation once.

    Raises `BadInput` where a file is no record, or where the records are not of the same defense on
    the same setup.
    """
    records = list({record.id: record for record in map(_read_record, paths)}.values())
    for record in records[1:]:
        _check_together(records[0], record)
    return records


def render(records: Sequence[Record]) -> str:
    """One record, or several that go together as `read` checks, as plain text."""
    if len(records) == 1:
        return one_record.render(one_record.under_every_rule(records[0]))
    return attacks.render(attacks.compare_attacks(records))


def as_json(records: Sequence[Record]) -> dict[str, Any]:
    """As `render`, with plain numbers; the comparison is None for one record."""
    comparison = attacks.compare_attacks(records) if len(records) > 1 else None
    return {
        "records": [one_record.as_json(one_record.under_every_rule(record)) for record in records],
        "comparison": comparison and attacks.as_json(comparison),
    }


def _read_record(path: Path) -> Record:
    if is_failure(path):
        raise BadInput(
            f"{path} is a failure and has no verdict ({read_failure(path).error}): run the "
            "evaluation again"
        )
    return read_record(path)


def _check_together(first: Record, other: Record) -> None:
    ours, theirs = _common(first), _common(other)
    differing = [name for name in ours if ours[name] != theirs.get(name)]
    if differing:
        raise BadInput(
            f"{first.id} and {other.id} differ in {' and '.join(differing)}: give "
            "records of one defense on the same images, "
            "classifier and threat, under any attacks"
        )


def _common(record: Record) -> dict[str, Any]:
    """All of a record's identity that is not the attack's, and the images themselves."""
    identity = {
        key: value
        for key, value in record.identity.items()
        if key not in (*attacks.ATTACK_KEYS, "seeds")
    }
    return {
        **identity,
        "build seed": record.identity["seeds"]["build"],
        "images": (record.outcomes.ids, record.outcomes.labels),
    }
