"""`bench show`: one record under every aggregation rule, or several attacks on one defense side by
side.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.report import attacks, curve, one_record
from bench.results.record import Record
from bench.results.store import files_below, is_failure, read_failure, read_record


def read(places: Sequence[Path]) -> list[list[Record]]:
    """The records in these files and below these folders, each evaluation once, in groups: those of
    one defense on one setup go together.

    Failures below a folder are passed over. Raises `BadInput` where a file is no record, where a
    folder has none, or where there are files alone and they do not go together.
    """
    folders = [place for place in places if os.path.isdir(place)]
    paths = [path for place in places for path in (_below(place) if place in folders else [place])]
    records = list({record.id: record for record in map(_read_record, paths)}.values())
    if not folders:
        if curve.is_curve(records):
            return [records]
        for record in records[1:]:
            _check_together(records[0], record)
        return [records]
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[json.dumps(_common(record), sort_keys=True)].append(record)
    return list(groups.values())


def _below(folder: Path) -> list[Path]:
    paths = [path for path in files_below(folder) if not is_failure(path)]
    if not paths:
        raise BadInput(f"no records in {folder}: run something first")
    return paths


def render(records: Sequence[Record]) -> str:
    """One record, or several that go together as `read` checks, as plain text."""
    if len(records) == 1:
        return one_record.render(one_record.under_every_rule(records[0]))
    if curve.is_curve(records):
        return curve.render(curve.curve(records))
    return attacks.render(attacks.compare_attacks(records))


def as_json(records: Sequence[Record]) -> dict[str, Any]:
    """As `render`, with plain numbers; the comparison is None for one record."""
    if curve.is_curve(records):
        return {
            "records": [
                one_record.as_json(one_record.under_every_rule(record)) for record in records
            ],
            "comparison": None,
            "curve": curve.as_json(curve.curve(records)),
        }
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
