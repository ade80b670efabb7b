"""What differs between a record and what follows anew: named field by field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, TypeAdapter

from bench.engine.shards import Arrays
from bench.results.distances import Distances
from bench.results.findings import Finding
from bench.results.record import Record
from bench.results.views import DETECTOR, view_scores

_PLAIN: TypeAdapter[Any] = TypeAdapter(Any)


@dataclass(frozen=True)
class CheckResult:
    """One check of a record, whether it held, and what was seen."""

    name: str
    held: bool
    message: str


def compared(name: str, wrong: list[str], right: str) -> CheckResult:
    """A check that holds where nothing is wrong; `right` says so."""
    return CheckResult(name, not wrong, f"differs in {', '.join(wrong)}" if wrong else right)


def differing(stored: Any, again: Any, where: str = "") -> list[str]:
    """The dotted names of what differs between two nested values; numbers up to rounding."""
    stored, again = (
        _PLAIN.dump_python(value, mode="json") if isinstance(value, BaseModel) else value
        for value in (stored, again)
    )
    if isinstance(stored, Mapping) and isinstance(again, Mapping):
        names = list(dict.fromkeys([*stored, *again]))
        if set(stored) != set(again):
            only = [str(name) for name in names if (name in stored) != (name in again)]
            return [f"{where}.{name}".lstrip(".") for name in only]
        pairs = [(f"{where}.{name}".lstrip("."), stored[name], again[name]) for name in names]
        return [one for name, old, new in pairs for one in differing(old, new, name)]
    if isinstance(stored, float | int) and isinstance(again, float | int):
        same = isinstance(stored, bool) == isinstance(again, bool)
        return [] if same and math.isclose(stored, again, rel_tol=1e-9, abs_tol=1e-12) else [where]
    return [] if _PLAIN.dump_python(stored) == _PLAIN.dump_python(again) else [where]


def differing_views(record: Record, arrays: Arrays, num_classes: int) -> list[str]:
    """What the scored views say otherwise than in the record."""
    again, stored = view_scores(arrays, num_classes), record.views
    if stored is None or again is None:
        return [] if stored is again else ["views"]
    wrong = differing({"views.answers": stored.answers}, {"views.answers": again.answers})
    wrong += [] if stored.attacked == again.attacked else ["views.attacked"]
    # The scores are stored with four digits, and other batches round otherwise.
    for which in {*stored.detector, *again.detector}:
        old, new = (np.array(one.detector.get(which, [])) for one in (stored, again))
        if old.shape != new.shape or not np.allclose(old, new, rtol=1e-2, atol=1e-2):
            wrong.append(f"views.{DETECTOR}.{which}")
    return wrong


def differing_distances(stored: Distances | None, again: Distances | None) -> list[str]:
    """Whether distances differ by more than what other batches round otherwise on a long way."""
    if stored is None or again is None:
        return [] if stored is again else ["distances"]
    old, new = stored.array(), again.array()
    same = old.shape == new.shape and np.allclose(old, new, rtol=1e-2, atol=1e-6)
    return [] if same else ["distances"]


def differing_findings(stored: list[Finding], again: list[Finding]) -> list[str]:
    """Names of findings that are on one side only, or say something else there."""
    old, new = ({_told(one): one for one in findings} for findings in (stored, again))
    wrong = {name for name, *_ in old.keys() ^ new.keys()}
    wrong |= {
        told[0]
        for told in old.keys() & new.keys()
        # Findings of older records carry no data.
        if _data(old[told]) not in ({}, _data(new[told]))
    }
    return [f"findings.{name}" for name in sorted(wrong)]


def _told(finding: Finding) -> tuple[str, str, str]:
    return finding.name, finding.verdict, finding.message


def _data(finding: Finding) -> dict[str, Any]:
    return finding.model_dump(exclude={"name", "verdict", "message"}, exclude_defaults=True)
