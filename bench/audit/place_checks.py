"""Checks that ask the defense elsewhere: on the points that files hold, and in another process."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.audit.limits import ELSEWHERE_IMAGES
from bench.audit.row import AuditedRow, Rows
from bench.audit.search_checks import far_points
from bench.audit.verdicts import checked, graded, not_applicable, of_comparison
from bench.errors import BadInput
from bench.losses import margin
from bench.results.audit import AuditCheck

_LEVELS = 255


def whole_pixels(row: AuditedRow) -> Iterator[AuditCheck]:
    """S19: points whose pixels are whole numbers of 255, as in files. No search ends there, so a
    defense may be another function there.
    """
    levels = (row.images * _LEVELS).round()
    most = math.floor(row.threat.eps * _LEVELS + 1e-6)
    if row.threat.norm != "linf" or most < 1 or not torch.equal(levels / _LEVELS, row.images):
        yield not_applicable("S19", "no pixels in steps of 1/255, or no such step inside the ball")
        return

    def rounded(rows: Rows) -> Tensor:
        at = torch.as_tensor(rows, device=row.images.device)
        moved = ((_found(row, rows) - row.images[at]) * _LEVELS).round().clamp(-most, most)
        return (levels[at] + moved).clamp(0, _LEVELS) / _LEVELS

    of = "the base" if _has_fixed_base(row) else "the defense"
    told = f"points of steps on the margin of {of}, rounded to whole pixel values,"
    yield of_comparison(row, "S19", told, row.compare("S19", rounded), fails=True, silent=0.0)


def new_process(row: AuditedRow) -> Iterator[AuditCheck]:
    """S20: a process in which the defense has seen no image answers points of the base, and those
    of the attack, as this one does. A copy in this process shares what modules hold outside of it.
    """
    if row.elsewhere is None:
        yield not_applicable("S20", "the defense is an object of this process")
        return
    rows = np.arange(len(row))
    # Points that the defense could not choose come first, before it sees anything near the images.
    asked = [_found(row, rows)] + [row.points] * (row.points is not row.images)
    here = [row.judged(points, rows).mean(1) for points in asked]
    try:
        answers = row.elsewhere(asked, row.ids)
    except BadInput as error:
        yield checked("S20", "warn", f"a new process could not answer: {error}")
        return
    there = [row.right(answer, rows).mean(1) for answer in answers]
    lost = np.stack([row.wins(b, a) for a, b in zip(here, there, strict=True)]).any(0)
    many = int(lost.sum())
    yield checked(
        "S20",
        graded(fail=many >= ELSEWHERE_IMAGES, warn=many > 0),
        f"a new process, in which the defense had seen no image, is wrong on points of {many} of "
        f"{len(row)} images on which it is right here",
        value=float(many),
        threshold=float(ELSEWHERE_IMAGES),
        images=row.ids_at(np.flatnonzero(lost)),
    )


def _has_fixed_base(row: AuditedRow) -> bool:
    return row.base is not None and not row.undefended.stochastic


def _found(row: AuditedRow, rows: Rows) -> Tensor:
    """Points of steps on the margin of the base, else of the defense itself."""
    if _has_fixed_base(row):
        return far_points(row, rows)
    return row.ascent(rows, margin, steps=row.steps)
