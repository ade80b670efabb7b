"""What speaks against the records of one defense, seen together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.results.findings import Finding
from bench.results.record import Record

OF_A_SEARCH = ("beaten", "weak-attack", "base-points")
"""Names of findings that say of an attack what it left, and not of the defense."""


def doubts(records: Sequence[Record]) -> list[Finding]:
    """What was found that is more than a note. That a few steps or the base's points break what an
    attack left is no doubt where another attack breaks those images, of which the same is not
    said.

    Args:
        records: of one build of a defense on one setup.
    """
    return [
        finding
        for record in records
        for finding in record.findings
        if finding.verdict != "note" and not _is_answered(finding, records)
    ]


def _is_answered(finding: Finding, records: Sequence[Record]) -> bool:
    if finding.name not in OF_A_SEARCH or not finding.images:
        return False
    trusted = [
        record
        for record in records
        if not any(said.name in OF_A_SEARCH for said in record.findings)
    ]
    return any(_breaks(record, finding.image_ids()) for record in trusted)


def _breaks(record: Record, ids: Sequence[int]) -> bool:
    """Whether it leaves none of these images right in more than half of the judged draws."""
    of_these = np.isin(record.outcomes.image_ids(), ids)
    right = record.outcomes.correct("adversarial").mean(1)
    return int(of_these.sum()) == len(ids) and bool((right[of_these] <= 0.5).all())
