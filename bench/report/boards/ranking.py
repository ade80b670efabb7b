"""The one ranking rule of boards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.report.boards.model import Row

NOT_ATTACKED, COLLAPSED, FAILED = "not attacked", "collapsed", "failed a check"
INCOMPLETE = "incomplete"
"""Why a row is not ranked; behind `incomplete` stands what is missing."""

_BELOW = (INCOMPLETE, NOT_ATTACKED, COLLAPSED, FAILED)


def ranked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows in order, with their ranks: 1 + the number of ranked rows whose whole interval lies
    above a row's own. So rows that the images cannot tell apart share a rank. Those with a reason
    not to be ranked stand below, and count for nobody.
    """
    compared = [row for row in rows if not row.unranked]
    placed = [
        replace(row, rank=1 + sum(other.robust.low > row.robust.high for other in compared))
        for row in compared
    ]
    placed.sort(key=lambda row: (row.rank, -row.robust.value, row.defense))
    below = sorted(
        (row for row in rows if row.unranked),
        key=lambda row: (_group(row), -row.robust.value, row.defense),
    )
    return (*placed, *below)


def _group(row: Row) -> int:
    return next(at for at, word in enumerate(_BELOW) if row.unranked.startswith(word))
