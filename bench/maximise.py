"""The one gradient-ascent loop, for attacks and for adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import Protocol

import torch
from torch import Tensor

from bench.threat import ThreatModel


@dataclass(frozen=True)
class Reading:
    """What one query tells of each image.

    Attributes:
        value: the objective, (n,).
        gradient: its gradient to the image, (n, C, H, W); None where it was not asked for.
        success: which images need no further step, because the function is deterministic and they
            are broken; bool (n,).
    """

    value: Tensor
    gradient: Tensor | None
    success: Tensor


class Trace:
    """What searches read of each image, step by step; kept where somebody asks for it.

    A reading is kept as it came, so that a trace costs no pass and next to no time.
    """

    def __init__(self) -> None:
        self._readings: list[tuple[int, Tensor, Reading]] = []
        self._rows: Tensor | None = None
        self._first_restart = 0

    def add(self, restart: int, rows: Tensor, reading: Reading) -> None:
        """Keep values and successes of one query of these rows, without the gradients."""
        kept = Reading(reading.value, None, reading.success)
        known = rows if self._rows is None else self._rows[rows]
        self._readings.append((self._first_restart + restart, known, kept))

    def part(self, rows: Tensor, number: int) -> Trace:
        """Where an attack inside an attack enters what it reads of images that are these rows here;
        its restarts count from `number` times 65,536 on.
        """
        inside = Trace()
        inside._readings = self._readings
        inside._rows = rows if self._rows is None else self._rows[rows]
        inside._first_restart = self._first_restart + (number << 16)
        return inside

    def paths(self, restart: int = 0) -> dict[int, list[float]]:
        """By row: the values read in one restart, in the order of the steps."""
        paths: dict[int, list[float]] = {}
        for number, rows, reading in self._readings:
            if number == restart:
                for row, value in zip(rows.tolist(), reading.value.tolist(), strict=True):
                    paths.setdefault(row, []).append(value)
        return paths

    def restarts(self) -> list[int]:
        """The restarts that were read, in the order of their numbers."""
        return sorted({number for number, _, _ in self._readings})

    def succeeded(self) -> set[int]:
        """Rows of which some query was a success that stays one."""
        return {
            int(row)
            for _, rows, reading in self._readings
            for row in rows[reading.success].tolist()
        }


class Objective(Protocol):
    """Something to maximise over images."""

    def __call__(self, x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
        """Read the objective at `x`; `rows` (int64) says which of the images that the loop started
        with these are.
        """
        ...


@dataclass(frozen=True)
class Ascent:
    """Result of `ascend`.

    Attributes:
        points: the first success of each image, else its point of largest value, (n, C, H, W).
        values: the objective there, (n,).
        success: which images succeeded, bool (n,).
        last: the iterate after the last step taken, (n, C, H, W).
    """

    points: Tensor
    values: Tensor
    success: Tensor
    last: Tensor


def half_cosine(step: int, steps: int) -> float:
    """How long a step is whose length falls from 1 to 0 over `steps` steps."""
    return (1 + cos(pi * step / steps)) / 2


def ascend(
    objective: Objective,
    start: Tensor,
    origin: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    size: float | Callable[[int], float],
    momentum: float = 0.0,
) -> Ascent:
    """Projected steepest ascent (Madry et al. 2018, arXiv 1706.06083, section 2.1): x <- project(x
    + size * direction).

    The iterate itself is projected to ball and box. Images leave the batch at their first success,
    so they cost nothing more. A survivor costs steps + 1 forward and `steps` backward passes a
    draw.

    Args:
        objective: what to maximise.
        start: starting points inside ball and box, (n, C, H, W).
        origin: the images at the ball's centre.
        threat: ball, box and step direction.
        steps: number of steps.
        size: step length in the threat's norm, one for all steps or by the step's number.
        momentum: from the second step on, the share of the move before in the next one (Croce and
            Hein 2020, arXiv 2003.01690, algorithm 1, 1 - alpha): x + (1 - momentum) * (projected
            step) + momentum * (x - the iterate before), projected.
    """
    count = len(start)
    points, last = start.clone(), start.clone()
    values = torch.full((count,), -torch.inf, device=start.device)
    success = torch.zeros(count, dtype=torch.bool, device=start.device)
    rows, ball = torch.arange(count, device=start.device), threat.around(origin)
    x = before = start
    for iteration in range(steps + 1):
        if not len(rows):
            break
        reading = objective(x, rows, iteration, iteration < steps)
        better = (reading.success | (reading.value > values[rows])).nonzero().squeeze(1)
        improved = rows[better]
        points.index_copy_(0, improved, x.index_select(0, better))
        values.index_copy_(0, improved, reading.value.index_select(0, better))
        some = bool(reading.success.any())
        if some:
            success[rows] = reading.success
        if reading.gradient is None or iteration == steps:
            last.index_copy_(0, rows, x)
            break
        gradient = reading.gradient
        if some:
            alive = (~reading.success).nonzero().squeeze(1)
            last[rows[reading.success]] = x[reading.success]
            rows, ball = rows[alive], ball.rows(alive)
            x, gradient, before = (one.index_select(0, alive) for one in (x, gradient, before))
        length = size(iteration) if callable(size) else size
        stepped = ball.ascend(x, gradient, length)
        if momentum and iteration:
            move = (1 - momentum) * (stepped - x) + momentum * (x - before)
            stepped = ball.project(x + move)
        before, x = x, stepped
    return Ascent(points, values, success, last)
