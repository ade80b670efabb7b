"""What all searches share: their result, how they read a victim, and which images still search."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.losses import margin, margin_and_error, misclassified
from bench.maximise import Objective, Reading
from bench.randomness import Query
from bench.threat import ThreatModel
from bench.victim import Victim

DRAWS = 4
"""Draws behind each value where the victim draws freshly."""
_TINY = 1e-30


@dataclass(frozen=True)
class SearchResult:
    """What a search found for the images of `rows`, in their order.

    Attributes:
        points: the first success of each image, else its point of largest margin, (m, C, H, W).
        margins: best wrong logit minus true logit there, the mean over the draws, (m,).
        success: whether every draw that was read there is wrong, bool (m,). Final where the victim
            is `deterministic`; elsewhere only the judge's draws decide.
    """

    points: Tensor
    margins: Tensor
    success: Tensor


@dataclass(frozen=True)
class NearestResult:
    """What a search found for the images of `rows`, in their order.

    Attributes:
        points: the nearest broken point of each image, the image itself where none was found,
            (m, C, H, W); they need not lie in the ball.
        distances: their distances, infinite where none was found, float64 (m,). A point of the ball
            is at eps at most, whatever rounding adds.
        inside: the nearest broken point where it lies in the ball, else the point of the ball on
            the way there, (m, C, H, W).
    """

    points: Tensor
    distances: Tensor
    inside: Tensor


Reader = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Points (n, C, H, W) and whose they are, int64 (n,), to margins (n,) and successes, bool (n,)."""


def reader(victim: Victim, labels: Tensor, restart: int, draws: int = DRAWS) -> Reader:
    """Reads margins off function values alone; one forward pass a draw, no backward pass.

    Under fixed noise the values are exact. Where the victim draws freshly, all queries of an image
    read the same `draws` draws of the attack's stream (a sample average): two candidates are
    compared under the same noise, so that no draw that was lucky once decides the search. Those
    draws are not the judge's.

    Args:
        victim: whose function is read; where its gradient is another function's, that one.
        labels: true labels of all the victim's images, int64 (n,).
        restart: part of the key of every draw.
        draws: how many draws an image under fresh randomness.
    """
    queries = 1 if victim.fixed else math.ceil(draws / victim.randomness.k)

    def read(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if queries == 1:
            logits = victim.searched_logits(x, rows, Query(restart, 0), labels)
        else:
            logits = _logits(victim, x, rows, restart, queries)
        count = logits.shape[1]
        if count == 1:
            gap, wrong = margin_and_error(logits[:, 0], labels[rows])
            return gap.nan_to_num(nan=0.0), wrong
        flat, repeated = logits.flatten(0, 1), labels[rows].repeat_interleave(count)
        # Two infinite logits differ by NaN; they tie.
        values = margin(flat, repeated).nan_to_num(nan=0.0).reshape(len(x), count)
        return values.mean(1), misclassified(flat, repeated).reshape(len(x), count).all(1)

    return read


def _logits(victim: Victim, x: Tensor, rows: Tensor, restart: int, queries: int) -> Tensor:
    """Logits (n, draws, K) of the draws of so many queries."""
    parts = [victim.logits(x, rows, Query(restart, j)) for j in range(queries)]
    return parts[0] if queries == 1 else torch.cat(parts, 1)


Decider = Callable[[Tensor, Tensor], Tensor]
"""Points (n, C, H, W) and whose they are, int64 (n,), to whether they are broken, bool (n,)."""


def decider(victim: Victim, labels: Tensor, restart: int, draws: int = DRAWS) -> Decider:
    """Reads answers alone: a point is broken that is wrong in more than half of its draws.

    Wrong is what `misclassified` calls so: by more than rounding. Draws and arguments are as in
    `reader`.
    """
    queries = 1 if victim.fixed else math.ceil(draws / victim.randomness.k)

    def decide(x: Tensor, rows: Tensor) -> Tensor:
        logits = _logits(victim, x, rows, restart, queries)
        count = logits.shape[1]
        wrong = misclassified(logits.flatten(0, 1), labels[rows].repeat_interleave(count))
        return wrong.reshape(len(x), count).sum(1) * 2 > count

    return decide


def shortened(
    decide: Decider,
    rows: Tensor,
    origin: Tensor,
    points: Tensor,
    threat: ThreatModel,
    *,
    halvings: int,
) -> Tensor:
    """Broken points (m, C, H, W) moved towards their images `origin` as far as bisection finds them
    broken; `rows` (m,) says whose they are. It reads `halvings` points of each.
    """
    low = torch.zeros(len(points), dtype=torch.float64, device=points.device)
    high, best = torch.ones_like(low), points.clone()
    for _ in range(halvings):
        middle = (low + high) / 2
        x = between(origin, points, middle, threat)
        broken = decide(x, rows)
        best[broken] = x[broken]
        low, high = torch.where(broken, low, middle), torch.where(broken, middle, high)
    return best


def between(origin: Tensor, points: Tensor, share: Tensor, threat: ThreatModel) -> Tensor:
    """Points at this share (n,) of the distance from images `origin` (n, ...) to points.

    In Linf the point is clipped to the smaller ball, which keeps the moves of pixels that are small
    (Chen et al. 2020, arXiv 1904.02144); else it lies on the segment.
    """
    if threat.norm == "linf":
        return threat.project_within(points, origin, share * threat.distance(points, origin))
    moved = origin + per_image(share, points) * (points.double() - origin.double())
    return moved.to(points.dtype).clamp(0.0, 1.0)


def stretched(origin: Tensor, points: Tensor, factor: Tensor) -> Tensor:
    """Points (n, C, H, W) farther from images `origin` by a factor (n,), in the box."""
    moved = origin + per_image(factor, points) * (points.double() - origin.double())
    return moved.to(points.dtype).clamp(0.0, 1.0)


def settled(
    victim: Victim, threat: ThreatModel, origin: Tensor, points: Tensor, least: Tensor
) -> NearestResult:
    """What follows from the nearest broken points (m, C, H, W) of images `origin` and their
    distances (m,); where these are infinite the points are only on the way out.

    Where the victim is not `deterministic`, the point inside lies on the rim of the ball: at the
    boundary itself a few draws more or less are wrong.
    """
    some = torch.isfinite(least)
    held = some & threat.contains(points, origin)
    if victim.deterministic:
        factor = torch.ones_like(least)
    else:
        away = threat.distance(points, origin).clamp_min(1e-12)
        factor = (threat.eps / away).clamp_min(1.0)
    inside = threat.project(stretched(origin, points, factor), origin)
    if victim.deterministic:
        inside[held] = points[held]
    found = torch.where(per_image(some, points), points, origin)
    return NearestResult(found, torch.where(held, least.clamp_max(threat.eps), least), inside)


def accumulated(objective: Objective, start: Tensor, momentum: float) -> Objective:
    """The objective with gradients that are summed up over the steps: v = m v + g / |g|_1 (Dong et
    al. 2018, arXiv 1710.06081, eq. 6).

    On a piecewise linear function it is this that leaves the seam between two pieces, where plain
    steps go to and fro.

    Args:
        objective: for one ascent of all rows, from its first step on.
        start: where it starts, (n, C, H, W).
        momentum: m, of [0, 1).
    """
    total = torch.zeros_like(start)

    def read(x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
        reading = objective(x, rows, iteration, gradient)
        if reading.gradient is None:
            return reading
        length = reading.gradient.flatten(1).abs().sum(1).clamp_min(_TINY)
        summed = momentum * total.index_select(0, rows) + reading.gradient / per_image(length, x)
        total.index_copy_(0, rows, summed)
        return Reading(reading.value, summed, reading.success)

    return read


class Incumbents:
    """The best point of each image so far, and which images still search.

    An image leaves at its first success where the victim is `deterministic`.

    Attributes:
        active: places in `rows` of the images that still search, int64 (a,).
        points, margins, success: as in `SearchResult`.
    """

    def __init__(self, victim: Victim, images: Tensor, rows: Tensor) -> None:
        self.rows = rows
        self.active = torch.arange(len(rows), device=rows.device)
        self.points = images[rows].clone()
        self.margins = torch.full((len(rows),), -torch.inf, device=rows.device)
        self.success = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        self._final = victim.deterministic

    def offer(self, read: Reader, candidates: Tensor, *, ties: bool = True) -> None:
        """Read one candidate (a, C, H, W) of each active image and keep those that are as good.

        A tie counts as good, so that a search walks on where the function is flat.
        """
        values, success = read(candidates, self.rows[self.active])
        better = values >= self.margins[self.active] if ties else values > self.margins[self.active]
        if self._final:
            better |= success
        if bool(better.any()):
            kept = self.active[better]
            self.points[kept], self.margins[kept] = candidates[better], values[better]
            self.success[kept] = success[better]
        # The same object as long as nobody leaves: who searches keeps what belongs to it.
        if self._final and bool(success.any()):
            self.active = self.active[~success]

    def result(self) -> SearchResult:
        return SearchResult(self.points, self.margins, self.success)


def per_image(numbers: Tensor, images: Tensor) -> Tensor:
    """One number an image (n,), shaped to be broadcast over images (n, C, H, W)."""
    return numbers.reshape(-1, *[1] * (images.dim() - 1))


def pixel_scale(threat: ThreatModel, pixels: int) -> float:
    """The standard deviation at which Gaussian noise of so many pixels is about `eps` long."""
    if threat.norm == "linf":
        return threat.eps
    if threat.norm == "l2":
        return threat.eps / math.sqrt(pixels)
    # The mean of |g| is sqrt(2 / pi).
    return threat.eps / (0.7979 * pixels)
