"""What became of each image: survived, broken, clean-wrong; and what broke it.

An answer counts as in every table: an attacked one is right only if the clean one was, under the
same draw. Of several draws the majority decides, and a tie is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.report.words import attack_label
from bench.results.aggregation import majority
from bench.results.arrays import Bools
from bench.results.record import Record

SURVIVED, BROKEN, CLEAN_WRONG = "survived", "broken", "clean-wrong"
KINDS = (BROKEN, SURVIVED, CLEAN_WRONG)


@dataclass(frozen=True)
class Breaker:
    """Something that broke images.

    Attributes:
        name: an attack of the same defense, a stage of this record's attack, or points that were
            found beside it.
        record: the other record's id; empty where it is this one.
        images: which of the record's images it broke, bool (n,).
    """

    name: str
    record: str
    images: Bools


def clean_right(record: Record) -> Bools:
    """Whether each image is right without an attack, bool (n,)."""
    return majority(record.outcomes.correct("clean")) > 0


def broken(record: Record) -> Bools:
    """Whether the record's own points broke each image, bool (n,)."""
    return clean_right(record) & ~(majority(record.outcomes.correct("adversarial")) > 0)


def kinds(record: Record) -> list[str]:
    """One of `KINDS` for each image."""
    right, lost = clean_right(record), broken(record)
    return [
        CLEAN_WRONG if not fine else BROKEN if gone else SURVIVED
        for fine, gone in zip(right, lost, strict=True)
    ]


def breakers(record: Record, others: Sequence[Record]) -> list[Breaker]:
    """What broke the images of a record: its own attack by stages, points found beside it, and
    the attacks of `others`, records of the same defense on the same images.
    """
    rows = [record, *(one for one in others if one.id != record.id)]
    labels = [attack_label(one) for one in rows]
    names = [
        f"{label}, seed {one.title['seed']}" if labels.count(label) > 1 else label
        for label, one in zip(labels, rows, strict=True)
    ]
    own = [Breaker(names[0], "", broken(record)), *_stages(record), *_beside(record)]
    return [
        *own,
        *(
            Breaker(name, one.id, broken(one))
            for name, one in zip(names[1:], rows[1:], strict=True)
        ),
    ]


def _stages(record: Record) -> list[Breaker]:
    if record.stages is None:
        return []
    digits = np.array(list(record.stages.broken_by))
    codes = "0123456789abcdefghijklmnopqrstuvwxyz"
    lost = broken(record)
    return [
        Breaker(f"stage {name}", "", (digits == codes[at]) & lost)
        for at, name in enumerate(record.stages.names)
    ]


def _beside(record: Record) -> list[Breaker]:
    right = clean_right(record)
    return [
        Breaker(name, "", right & ~(majority(correct) > 0) & ~broken(record))
        for name, correct in record.extra_correct().items()
    ]
