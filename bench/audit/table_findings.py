"""What an audit of published tables finds, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bench.audit.cells import Cell

Verdict = Literal["fail", "warn"]

ADVICE = {
    "order": "count an image as broken where any of the attacks breaks it, and run them again with "
    "other seeds; a stronger attack that leaves more points to masked gradients or to randomness",
    "clean": "count an image that is wrong without attack as broken: then no attack can leave more",
    "ball": "the points of the smaller ball lie in the larger one: judge them there, too",
    "draws": "an image that is right in all draws is right in each: see what each column counts",
    "weak-attack": "give the attack more steps, restarts and a margin loss; where it stays so, "
    "look for masked gradients",
    "constant": "print macro-F1, balanced accuracy and the largest share of answers beside it",
    "below-constant": "print the accuracy of the best constant answer beside it",
    "unmoved": "see whether the attack moved the images and whether its gradients are zero; a "
    "search without gradients decides",
    "count": "print counts, the number of images and the release of the data set",
    "swapped": "compare the columns' headers with the logs; until then either reading may hold",
    "exchanged": "compare the rows with the logs; until then either reading may hold",
    "clean-differs": "say which weights and which images each table rests on",
    "two-figures": "say which weights, ball, release and version each figure rests on",
    "copied": "compare with the logs: two cases seldom share several numbers to the last digit",
}
"""What would settle a finding, by its check."""


class Count(BaseModel):
    """A share of images that a printed number may be.

    Attributes:
        count, size: how many images, of how many.
        share: count / size in percent.
        fits: whether it gives the printed number when rounded to its digits, when the other digits
            are cut off, or not at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    size: int
    share: float
    fits: Literal["rounded", "cut", "no"]

    def __str__(self) -> str:
        return f"{self.count:,}/{self.size:,} = {self.share:.4f}"


class TableFinding(BaseModel):
    """One thing that does not fit in published tables.

    Attributes:
        check: which check found it; a key of `ADVICE`.
        verdict: `fail` where it cannot be, or the number cannot mean what it seems to; `warn` where
            other seeds, another release or a slip of the pen would explain it.
        source, table, dataset, architecture, defense: the case, in the table's words; what a
            finding of several cases has in common.
        attacks: the attacks it speaks of; `none` is no attack.
        value: what was measured: points of difference, or a printed percentage.
        threshold: what it was held against, in the same unit.
        images: `value` in images of the test set; None where that is not known or makes no sense.
        counts: the shares of images nearest to the printed number.
        message: what was seen, in one sentence or two.
        advice: what would settle it.
        rows: `FILE:LINE` of every number it rests on.
        badges: doubts that these numbers carry already.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: str
    verdict: Verdict
    source: str
    table: str
    dataset: str
    architecture: str
    defense: str
    attacks: tuple[str, ...]
    value: float
    threshold: float
    images: int | None = None
    counts: tuple[Count, ...] = ()
    message: str
    advice: str
    rows: tuple[str, ...]
    badges: tuple[str, ...] = ()

    @property
    def case(self) -> str:
        """Data set, architecture and defense in one line."""
        return ", ".join(filter(None, [self.dataset, self.architecture, self.defense]))


def finding(
    check: str,
    verdict: Verdict,
    cells: Sequence[Cell],
    message: str,
    *,
    measured: tuple[float, float],
    images: int | None = None,
    counts: tuple[Count, ...] = (),
) -> TableFinding:
    """A finding of these cells; what they differ in is left empty.

    Args:
        check: a key of `ADVICE`.
        verdict: see `TableFinding`.
        cells: the numbers it rests on.
        message: what was seen.
        measured: value and threshold.
        images, counts: see `TableFinding`.
    """
    rows = [cell.reference for cell in cells]

    def common(values: list[str]) -> str:
        return values[0] if len(set(values)) == 1 else ""

    return TableFinding(
        check=check,
        verdict=verdict,
        source=common([row.source for row in rows]),
        table=common([row.table for row in rows]),
        dataset=common([row.dataset for row in rows]),
        architecture=common([row.architecture for row in rows]),
        defense=common([row.defense for row in rows]),
        attacks=tuple(dict.fromkeys(row.attack for row in rows)),
        value=round(measured[0], 6),
        threshold=round(measured[1], 6),
        images=images,
        counts=counts,
        message=message,
        advice=ADVICE[check],
        rows=tuple(dict.fromkeys(place for cell in cells for place in cell.places)),
        badges=tuple(sorted({badge for row in rows for badge in row.badges})),
    )
