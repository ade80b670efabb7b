"""Search with a population: points of the ball are crossed with each other, and each child ascends.

Where the margin has many local maxima, one ascent ends in one of them, and more starts find the
better ones rarely. But maxima share parts: what one has found in a corner of the image is of use to
another. Crossing puts such parts together, and ascent mends the seams (a memetic algorithm: Moscato
1989, Caltech report 826).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.losses import margin
from bench.maximise import Objective, ascend, half_cosine
from bench.noise import Noise
from bench.searches.search import SearchResult, accumulated, per_image
from bench.threat import ThreatModel
from bench.victim import Victim

_PATCHES = 5
"""The field that says which parent a pixel is taken from has this many knots a side."""
_MUTATED = 0.05
"""Share of a child's pixels that are taken from a random corner of the ball."""
_MOMENTUM = 0.5
_ELITE = 8
"""One in so many: the best of a population, copied over as many of the worst."""


@dataclass(frozen=True)
class Steps:
    """An ascent on the margin whose step falls from `first` to `last`, in eps.

    The step falls geometrically along a cosine, so that as many steps are short as are long:
    the maxima of a piecewise linear function are narrow.
    """

    count: int
    first: float
    last: float

    def size(self, eps: float, step: int) -> float:
        """Length of a step."""
        fallen = 1 - half_cosine(step, self.count)
        return eps * self.first * math.pow(self.last / self.first, fallen)


FIRST_ASCENT = Steps(40, 1.0, 0.01)
"""From a corner of the ball."""
ASCENT = Steps(30, 1 / 3, 1 / 300)
"""From where two parents were crossed."""


def passes(population: int, starts: int, generations: int) -> tuple[int, int]:
    """Forward and backward passes of a survivor, one draw a query."""
    first, later = starts * population, generations * population
    backward = first * FIRST_ASCENT.count + later * ASCENT.count
    return backward + first + later, backward


def crossover(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    threat: ThreatModel,
    *,
    population: int = 64,
    starts: int = 2,
    generations: int = 18,
    restart: int = 0,
) -> SearchResult:
    """Ascents from points that were crossed with each other.

        population = the best of starts * population ascents from random corners
        for each generation:
            each member is crossed with the better one of two others: where a smooth random field
            is positive, the child has the other's pixels; a few come from a random corner
            the child ascends on the margin, and takes its first parent's place where it is better
            the best eighth is copied over the worst

    An image is searched alone, its population being the batch, so that no other changes its
    points. It leaves after the generation in which it breaks, where the victim is `deterministic`.
    A gradient that is zero leaves crossing and mutation. The victim must be `fixed`: elsewhere
    the largest margin of so many is a chance hit. See `passes` for what a survivor costs.

    Args:
        victim: whose gradient is followed.
        images, labels: all the victim's images (n, C, H, W) and true labels, int64 (n,).
        rows: the images to search, int64 (m,).
        threat: ball, box and step direction.
        population: points that are kept of each image.
        starts: so many times the population is started from corners.
        generations: how often it is crossed.
        restart: part of the key of every random number.

    Raises:
        ValueError: where the victim is not `fixed`.
    """
    if not victim.fixed:
        raise ValueError("points of a population are compared: the victim must be fixed")
    points = images[rows].clone()
    margins = torch.full((len(rows),), -torch.inf, device=images.device)
    success = torch.zeros(len(rows), dtype=torch.bool, device=images.device)
    for place, row in enumerate(rows.split(1)):
        members = row.expand(population)
        objective = victim.objective(labels, margin, rows=members, restart=restart)
        noise = victim.random(row, restart)
        found = _Population(objective, images[members], threat, noise)
        found.begin(starts)
        for number in range(generations):
            if victim.deterministic and bool(found.success.any()):
                break
            found.cross(number)
        points[place], margins[place], success[place] = found.best()
    return SearchResult(points, margins, success)


class _Population:
    """The points of one image.

    Attributes:
        points: (population, C, H, W).
        values: the margins there, (population,).
        success: which of them are broken, bool (population,).
    """

    def __init__(
        self, objective: Objective, origin: Tensor, threat: ThreatModel, noise: Noise
    ) -> None:
        self._objective, self._origin, self._threat, self._noise = objective, origin, threat, noise
        self.points = origin
        self.values = torch.full((len(origin),), -torch.inf, device=origin.device)
        self.success = torch.zeros_like(self.values, dtype=torch.bool)

    def begin(self, starts: int) -> None:
        """Fill it with the best of ascents from corners."""
        for number in range(starts):
            if bool(self.success.any()):
                return
            corners = _corners(self._noise.at(f"start-{number}"), self._origin, self._threat)
            points, values, success = self._ascend(corners, FIRST_ASCENT)
            values, order = torch.cat([self.values, values]).sort(descending=True, stable=True)
            order = order[: len(self.values)]
            self.values = values[: len(self.values)]
            self.points = torch.cat([self.points, points])[order]
            self.success = torch.cat([self.success, success])[order]

    def cross(self, number: int) -> None:
        """One generation."""
        noise, size = self._noise.at(f"generation-{number}"), len(self.points)
        shape = self._origin.shape
        knots = tuple(min(side, _PATCHES) for side in shape[2:])
        field = noise.normal("field", (size, 1, *knots))[0]
        field = F.interpolate(field, tuple(shape[2:]), mode="bilinear", align_corners=False)
        others = self._chosen(noise)
        children = torch.where(field > 0, self.points[others], self.points)
        mutated = noise.uniform("mutated", tuple(shape))[0] < _MUTATED
        children = torch.where(mutated, _corners(noise, self._origin, self._threat), children)
        points, values, success = self._ascend(self._threat.project(children, self._origin), ASCENT)
        better = success | (values > self.values)
        self.points = torch.where(per_image(better, points), points, self.points)
        self.values = torch.where(better, values, self.values)
        self.success = self.success | success
        self._copy_the_best()

    def _chosen(self, noise: Noise) -> Tensor:
        """The member that each is crossed with: the better one of two random ones."""
        size = len(self.points)
        one, other = (noise.uniform("others", (2, size))[0] * size).long()
        return torch.where(self.values[one] > self.values[other], one, other)

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """A success, else the point of largest margin: (C, H, W), its margin, whether it is one."""
        place = torch.where(self.success, torch.inf, self.values).argmax()
        return self.points[place], self.values[place], self.success[place]

    def _ascend(self, start: Tensor, steps: Steps) -> tuple[Tensor, Tensor, Tensor]:
        eps = self._threat.eps
        found = ascend(
            accumulated(self._objective, start, _MOMENTUM),
            start,
            self._origin,
            self._threat,
            steps=steps.count,
            size=lambda step: steps.size(eps, step),
        )
        return found.points, found.values, found.success

    def _copy_the_best(self) -> None:
        order = self.values.argsort(descending=True, stable=True)
        count = len(order) // _ELITE
        order[len(order) - count :] = order[:count]
        self.points, self.values = self.points[order], self.values[order]
        self.success = self.success[order]


def _corners(noise: Noise, origin: Tensor, threat: ThreatModel) -> Tensor:
    """Random corners of the ball for a population, in L2 and L1 points on the sphere."""
    shape = tuple(origin.shape)
    if threat.norm == "linf":
        uniform = noise.uniform("corners", shape)[0]
        uniform = (uniform >= 0.5).to(uniform.dtype)
        return threat.random(origin, uniform, origin)
    radius = torch.ones(len(origin), 1, dtype=origin.dtype, device=origin.device)
    return threat.random(origin, radius, noise.normal("corners", shape)[0])
