"""The attacked points a second time: a copy that has seen no image answers them in another order
and other batches.

Where it agrees with the judge, an image's answer depends neither on its neighbours, nor on what was
seen before, nor on a generator that nobody names. Only where it does not, further passes tell why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.checks.alike import differing, rounding
from bench.defense import DefendedClassifier
from bench.randomness import Query, judging
from bench.victim import Victim

_ALONE = 2
_EXPLAINED = 8
_SHAKES, _SHAKEN_BY = 8, 1e-6
_FAR = 10.0
"""A difference that rounding explains is at most this many times what a shaken input shows."""


class Cause(IntEnum):
    """Why a copy that has seen no image answers otherwise."""

    NONE = 0
    BATCH = 1
    REMEMBERS = 2
    HIDDEN = 3
    ROUNDING = 4
    """Its answer hangs on the last digits of its input: no fault of the defense's making."""


@dataclass(frozen=True)
class Asking:
    """How the judge asks a defense, under its first draw.

    Attributes:
        root: root seed of the evaluation.
        batch_size: rows in one forward pass.
        device: where images lie.
    """

    root: int
    batch_size: int
    device: torch.device

    def logits(
        self,
        defended: DefendedClassifier,
        images: Tensor,
        ids: npt.NDArray[np.int64],
        *,
        draws: int = 1,
        batch_size: int = 0,
    ) -> Tensor:
        """Logits (n, draws, K) under the judge's first draws; the images in their order."""
        observer = Victim(
            defended,
            ids,
            randomness=judging(draws),
            root=self.root,
            batch_size=batch_size or self.batch_size,
            device=self.device,
        )
        rows = torch.arange(len(images), device=self.device)
        return observer.logits(images.to(self.device), rows, Query())


@dataclass(frozen=True)
class Again:
    """What the second pass shows, image by image (n,).

    Attributes:
        causes: a `Cause` each.
        gaps: the difference of the logits in units of what rounding explains.
        passes: forward passes spent.
    """

    causes: Tensor
    gaps: Tensor
    passes: Tensor


def answer_again(
    copies: Callable[[], DefendedClassifier],
    deployed: DefendedClassifier,
    points: Tensor,
    ids: npt.NDArray[np.int64],
    judged: Tensor,
    asking: Asking,
) -> Again:
    """Compare the judge's logits with those of a copy that has seen no image.

    Args:
        copies: makes such copies.
        deployed: the defense that was attacked and judged.
        points: the attacked points, (n, C, H, W).
        ids: their image ids, (n,).
        judged: the judge's logits under its first draw, (n, K).
        asking: how the judge asks.
    """
    n, unit = len(points), rounding(deployed)
    fresh = _in_other_batches(copies(), points, ids, asking)
    gaps = differing(fresh, judged.to(fresh.device), unit)
    causes, passes = torch.full((n,), int(Cause.NONE)), torch.ones(n, dtype=torch.int64)
    suspects = (gaps > 1).nonzero().flatten().tolist()
    # The largest differences are explained; the rest of the images share the first one's cause.
    suspects.sort(key=lambda row: -float(gaps[row]))
    for row in suspects[:_EXPLAINED]:
        one = slice(row, row + 1)
        why = _Witness(copies, deployed, points[one], ids[one], asking, unit)
        causes[row] = why.cause(float(gaps[row]))
        passes[row] += why.passes
    explained = [int(causes[row]) for row in suspects[:_EXPLAINED]]
    worst = max((cause for cause in explained if cause != Cause.ROUNDING), default=Cause.ROUNDING)
    for row in suspects[_EXPLAINED:]:
        causes[row] = worst
    return Again(causes, gaps.cpu(), passes)


def _in_other_batches(
    fresh: DefendedClassifier, points: Tensor, ids: npt.NDArray[np.int64], asking: Asking
) -> Tensor:
    """Logits (n, K) of the points, asked backwards: two alone, the others in odd batches of about a
    third.
    """
    n = len(points)
    backwards = np.arange(n)[::-1].copy()
    alone, together = backwards[:_ALONE], backwards[_ALONE:]
    size = min(asking.batch_size, max(1, n // 3) | 1)
    parts = [[row] for row in alone.tolist()] + ([together.tolist()] if len(together) else [])
    answers = [
        asking.logits(fresh, points[part], ids[part], batch_size=size)[:, 0] for part in parts
    ]
    out = torch.empty_like(torch.cat(answers))
    out[torch.from_numpy(backwards).to(out.device)] = torch.cat(answers)
    return out


@dataclass
class _Witness:
    """One image that was answered otherwise, asked alone."""

    copies: Callable[[], DefendedClassifier]
    deployed: DefendedClassifier
    point: Tensor
    id: npt.NDArray[np.int64]
    asking: Asking
    unit: float
    passes: int = 0

    def cause(self, gap: float) -> Cause:
        """Why it was answered otherwise, by `gap` units of rounding."""
        first = self.copies()
        before, other = self._ask(first), self._ask(self.copies())
        if self._gap(other, before) > 1:
            return Cause.HIDDEN
        if self._gap(self._ask(first), before) > 1:
            return Cause.REMEMBERS
        if self._gap(self._ask(self.deployed), before) > 1:
            return Cause.REMEMBERS
        shaken = max(self._gap(self._ask(first, shake), before) for shake in range(1, 1 + _SHAKES))
        return Cause.ROUNDING if shaken > 1 and gap <= _FAR * shaken else Cause.BATCH

    def _ask(self, defended: DefendedClassifier, shake: int = 0) -> Tensor:
        self.passes += 1
        point = self.point
        if shake:
            numbers = torch.Generator().manual_seed(shake)
            signs = 2 * torch.rand(point.shape, generator=numbers).to(point.device) - 1
            point = (point + _SHAKEN_BY * signs).clamp(0, 1)
        return self.asking.logits(defended, point, self.id)[:, 0]

    def _gap(self, one: Tensor, other: Tensor) -> float:
        return float(differing(one, other, self.unit)[0])
