"""Search for the nearest broken point: gradient steps inside a ball whose radius adapts."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.losses import Loss, RowLoss, margin
from bench.maximise import half_cosine
from bench.randomness import Query
from bench.searches.search import (
    NearestResult,
    decider,
    per_image,
    settled,
    shortened,
    stretched,
)
from bench.threat import ThreatModel
from bench.victim import Victim

_FIRST_STEP = {"linf": 1.0, "l2": 2.0, "l1": 2.0}
"""Length of the first step, in radii of the ball."""
_LAST_STEP = 0.01
"""Length of the last one, in first steps."""
_FIRST_CHANGE, _LAST_CHANGE = 0.05, 0.001
"""Share by which a radius grows or shrinks at the first and the last step."""
_SMALLEST = 0.01
"""Least radius, in eps, where one draw that errs proves nothing."""
_HALVINGS = 10
_DRAWS = 20
"""Draws behind each decision at the end where the victim draws freshly."""
_STRETCHES = (1.0, 1.2, 2.0)
"""How far beyond the last point of a walk a broken one is looked for where no step tells any; at
last at the rim of the ball.
"""
_TINY = 1e-12
DECIDING_RESTART = (1 << 15) + 1
"""Restart whose draws decide, clear of all that search."""


def passes(steps: int, classes: int, starts: int = 1) -> tuple[int, int]:
    """Forward and backward passes that every image costs, broken or not, where the victim is
    `deterministic`.
    """
    walks = [steps] * starts + [class_steps(steps)] * classes
    return sum(walks) + len(walks) + bool(classes) + _HALVINGS, sum(walks)


def class_steps(steps: int) -> int:
    """Steps towards each class."""
    return max(steps // 3, 1)


def nearest(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    classes: int = 9,
    starts: int = 1,
    restart: int = 0,
) -> NearestResult:
    """Fast minimum-norm search (Pintor et al. 2021, arXiv 2102.12827, algorithm 1).

        r = 0, x = the image
        repeat `steps` times:
            x is broken:      r = the smaller of (1 - c) r and the least distance so far
            none was so far:  r = (1 + c) (|x - image| + |margin| / dual norm of its gradient),
                              the distance of the boundary where the margin is linear
            else:             r = (1 + c) r, at most the least distance so far
            x = project(x + a r direction of the gradient) onto the ball of radius r, and the box

    c and a fall by a cosine. Steps are measured by the ball, so that no unit of pixels is in them
    (the paper's are of fixed lengths); projections are exact on ball and box together; and a
    bisection towards the image ends the search. After the walk on the margin follow walks of a
    third of the steps on the gap to each of the likeliest wrong classes, since the nearest class is
    not always the likeliest one. No radius exceeds what is known.

    Where the victim is not `deterministic`, a step tells no success: the end of each walk decides,
    and points beyond it, by a majority of draws that are the same for all of them.

    Args:
        victim: whose gradient is followed.
        images, labels: all the victim's images (n, C, H, W) and true labels, int64 (n,).
        rows: the images to search, int64 (m,).
        threat: norm and box; `eps` says which points are `inside`.
        steps: steps of each walk on the margin.
        classes: most classes that are aimed at.
        starts: walks on the margin; all but the first start at a random point of the ball.
        restart: part of the key of every draw; a walk takes one number more than the last one.
    """
    search = _Search(victim, images, labels, rows, threat)
    for number in range(starts):
        search.walk(margin, steps, restart + number, random=number > 0)
    restart += starts
    for targets in search.likeliest(min(classes, victim.num_classes - 1), restart):
        restart += 1
        search.walk(_towards(targets), class_steps(steps), restart)
    return search.result()


def _towards(targets: Tensor) -> RowLoss:
    """The logit of a class of each image (n,) minus the true one."""

    def gap(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        picked = logits.gather(1, torch.stack([targets[rows], labels], 1))
        return picked[:, 0] - picked[:, 1]

    return RowLoss(gap)


class _Search:
    """The nearest broken point so far of each image that is searched.

    Attributes:
        points: these points; the last point of the last walk where none was found, (m, C, H, W).
        least: their distances, infinite where none was found, float64 (m,).
    """

    def __init__(
        self, victim: Victim, images: Tensor, labels: Tensor, rows: Tensor, threat: ThreatModel
    ) -> None:
        self._victim, self._labels, self._rows, self._threat = victim, labels, rows, threat
        self._origin = images[rows]
        self._at = torch.arange(len(rows), device=rows.device)
        self.points = self._origin.clone()
        self.least = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=images.device)
        # No point of the box lies farther away.
        self._most = threat.distance((self._origin < 0.5).to(images.dtype), self._origin)

    def walk(self, loss: Loss | RowLoss, steps: int, restart: int, *, random: bool = False) -> None:
        """One walk, from a random point of the ball or from the image."""
        objective = self._victim.objective_beyond(
            self._labels, loss, rows=self._rows, restart=restart
        )
        x = self._random(restart) if random else self._origin
        radius = self._threat.distance(x, self._origin)
        found = torch.zeros_like(self._at, dtype=torch.bool)
        for step in range(steps + 1):
            reading = objective(x, self._at, step, step < steps)
            away = self._threat.distance(x, self._origin)
            broken = reading.value > 0
            if self._victim.deterministic:
                broken = reading.success
                self._keep(x, away, broken)
            if reading.gradient is None:
                break
            found |= broken
            fall = half_cosine(step, steps)
            change = _LAST_CHANGE + (_FIRST_CHANGE - _LAST_CHANGE) * fall
            slope = self._dual(reading.gradient)
            linear = away + reading.value.double().nan_to_num().abs() / slope
            outwards = torch.where(found, radius, linear) * (1 + change)
            radius = torch.where(broken, radius * (1 - change), outwards)
            radius = radius.minimum(self.least * (1 - change * broken)).minimum(self._most)
            if not self._victim.deterministic:
                # A chance hit at the image itself would leave no way out of it.
                radius = radius.clamp_min(_SMALLEST * self._threat.eps)
            length = _FIRST_STEP[self._threat.norm] * (_LAST_STEP + (1 - _LAST_STEP) * fall)
            moved = x + self._step(reading.gradient, length * radius)
            x = self._threat.project_within(moved, self._origin, radius)
        if not self._victim.deterministic:
            self._confirm(x)

    def _keep(self, x: Tensor, away: Tensor, broken: Tensor) -> None:
        nearer = broken & (away < self.least)
        self.points[nearer], self.least[nearer] = x[nearer], away[nearer]

    def _confirm(self, x: Tensor) -> None:
        """Keep the last points of a walk that are broken, or points beyond them."""
        none = ~torch.isfinite(self.least)
        self.points[none] = x[none]
        open_ = torch.ones_like(none)
        away = self._threat.distance(x, self._origin)
        rim = (self._threat.eps / away.clamp_min(_TINY)).clamp_min(_STRETCHES[-1])
        for factor in [*(torch.full_like(rim, one) for one in _STRETCHES), rim]:
            at = open_.nonzero().squeeze(1)
            beyond = stretched(self._origin[at], x[at], factor[at])
            broken = self._decide(beyond, self._rows[at])
            away = self._threat.distance(beyond, self._origin[at])
            nearer = broken & (away < self.least[at])
            kept = at[nearer]
            self.points[kept], self.least[kept] = beyond[nearer], away[nearer]
            open_[at[broken]] = False

    def _decide(self, x: Tensor, rows: Tensor) -> Tensor:
        return decider(self._victim, self._labels, DECIDING_RESTART, _DRAWS)(x, rows)

    def _random(self, restart: int) -> Tensor:
        noise, shape = self._victim.random(self._rows, restart), tuple(self._origin.shape[1:])
        if self._threat.norm == "linf":
            return self._threat.random(self._origin, noise.uniform("start", shape), self._origin)
        direction = noise.normal("start", shape)
        return self._threat.random(self._origin, noise.uniform("radius", (1,)), direction)

    def _dual(self, gradient: Tensor) -> Tensor:
        order = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[self._threat.norm]
        length: Tensor = gradient.flatten(1).double().norm(p=order, dim=1)
        return length.clamp_min(_TINY)

    def _step(self, gradient: Tensor, length: Tensor) -> Tensor:
        """Steps of these lengths (n,): by signs in Linf, else along the gradient.

        The paper goes along the gradient in Linf too. There signs find points at two thirds of the
        distance, on networks that are trained to be robust.
        """
        if self._threat.norm == "linf":
            return (per_image(length, gradient) * gradient.sign()).to(gradient.dtype)
        size = length / gradient.flatten(1).double().norm(dim=1).clamp_min(_TINY)
        return (per_image(size, gradient) * gradient).to(gradient.dtype)

    def likeliest(self, count: int, restart: int) -> list[Tensor]:
        """Wrong classes by their logits at the images, the largest first: int64 (n,) each."""
        if count <= 0:
            return []
        logits = self._victim.logits(self._origin, self._rows, Query(restart)).mean(1)
        true = self._labels[self._rows][:, None]
        order = torch.nan_to_num(logits).scatter(1, true, -torch.inf)
        every = torch.zeros(len(self._labels), count, dtype=torch.int64, device=true.device)
        every[self._rows] = order.argsort(dim=1, descending=True, stable=True)[:, :count]
        return list(every.T)

    def result(self) -> NearestResult:
        """After a bisection towards the images."""
        some = torch.isfinite(self.least)
        at = some.nonzero().squeeze(1)
        rows, origin = self._rows[at], self._origin[at]
        ends = shortened(
            self._decide, rows, origin, self.points[at], self._threat, halvings=_HALVINGS
        )
        away = self._threat.distance(ends, origin)
        nearer = away < self.least[at]
        self.points[at[nearer]], self.least[at[nearer]] = ends[nearer], away[nearer]
        return settled(self._victim, self._threat, self._origin, self.points, self.least)
