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
    placed = _leading([_placed(row, compared) for row in compared])
    placed.sort(key=lambda row: (row.rank, -row.robust.value, row.defense))
    below = sorted(
        (row for row in rows if row.unranked),
        key=lambda row: (_group(row), -row.robust.value, row.defense),
    )
    return (*placed, *below)


def _placed(row: Row, compared: Sequence[Row]) -> Row:
    above = sum(other.robust.low > row.robust.high for other in compared)
    below = sum(other.robust.high < row.robust.low for other in compared)
    return replace(row, rank=1 + above, last=len(compared) - below)


def _leading(placed: Sequence[Row]) -> list[Row]:
    """With a mark on the rows that come first, that nothing is noted of, and that are clearly
    better than a constant answer and than the undefended classifier.
    """
    tied = any(row.base and row.rank == 1 for row in placed)
    return [replace(row, leads=_leads(row, tied)) for row in placed]


def _leads(row: Row, tied: bool) -> bool:
    """`tied`: the undefended classifier is among the first; only the same images can tell then."""
    if row.base or row.notes or row.rank != 1 or row.robust.low <= row.constant:
        return False
    return not tied or (row.gain is not None and row.gain.low > 0)


def _group(row: Row) -> int:
    return next(at for at, word in enumerate(_BELOW) if row.unranked.startswith(word))
