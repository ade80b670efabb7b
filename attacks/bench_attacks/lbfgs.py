"""L-BFGS between bounds, for many images at once, each with a line search of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 8
"""Pairs of moves and gradient changes that a direction is made of."""
_ARMIJO = 1e-4
_SHORTEST = 1e-8
"""Share of a direction below which a line search gives up."""
_CURVATURE = 1e-10

Function = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]
"""(points (m, d), their rows (m,), number of the query) to values (m,), gradients (m, d), and which
rows need no further query, bool (m,).
"""


@dataclass(frozen=True)
class Minimum:
    """Result of `minimise`.

    Attributes:
        points: (n, d).
        values: the function there, (n,).
        done: which rows the function said to be done, bool (n,).
    """

    points: Tensor
    values: Tensor
    done: Tensor


class _Rows:
    """The state of each row: where it is, its direction, and its last pairs (newest last)."""

    def __init__(self, start: Tensor, low: Tensor, high: Tensor) -> None:
        n, d = start.shape
        self.low, self.high = low, high
        self.x = start.clamp(low, high)
        self.value = start.new_full((n,), torch.inf)
        self.gradient, self.direction = torch.zeros_like(start), torch.zeros_like(start)
        self.share = start.new_ones(n)
        self.moves, self.changes = start.new_zeros(MEMORY, n, d), start.new_zeros(MEMORY, n, d)

    def trial(self, rows: Tensor) -> Tensor:
        """The points that the line searches ask for."""
        step = self.share[rows, None] * self.direction[rows]
        return (self.x[rows] + step).clamp(self.low[rows], self.high[rows])

    def accept(self, rows: Tensor, point: Tensor, value: Tensor, gradient: Tensor) -> None:
        """Go to these points, remember the pairs, and choose the next directions."""
        move, change = point - self.x[rows], gradient - self.gradient[rows]
        # Pairs without positive curvature would cost the direction its descent (Nocedal and Wright
        # 2006, section 7.2).
        curved = _dot(move, change) > _CURVATURE * _dot(change, change)
        kept = rows[curved]
        for memory, newest in ((self.moves, move[curved]), (self.changes, change[curved])):
            memory[:, kept] = torch.cat([memory[1:, kept], newest[None]])
        self.x[rows], self.value[rows], self.gradient[rows] = point, value, gradient
        self.direction[rows], self.share[rows] = self._directions(rows), 1.0

    def shorten(self, rows: Tensor, value: Tensor, slope: Tensor) -> None:
        """Shorten the steps that did not lower the value: to the minimum of the parabola through
        what is known, between a tenth and a half.
        """
        rise = value - self.value[rows] - slope
        share = (-slope / (2 * rise)).nan_to_num(0.5).clamp(0.1, 0.5)
        self.share[rows] = self.share[rows] * share

    def stationary(self, rows: Tensor) -> Tensor:
        """Which rows have no way to go down between their bounds."""
        return (self.direction[rows] == 0).all(1) | (self.share[rows] < _SHORTEST)

    def _directions(self, rows: Tensor) -> Tensor:
        """Descent directions (m, d) on the pixels that are free to move.

        A pixel at a bound is held where the gradient, and then where the direction itself, leads
        out of it (two-metric projection: Bertsekas 1982, SIAM J. Control Optim. 20, section 2).
        """
        x, slope = self.x[rows], self.gradient[rows]
        at_low, at_high = x <= self.low[rows], x >= self.high[rows]
        free = ~((at_low & (slope > 0)) | (at_high & (slope < 0)))
        direction = self._quasi_newton(rows, slope, free)
        free &= ~((at_low & (direction < 0)) | (at_high & (direction > 0)))
        direction = self._quasi_newton(rows, slope, free)
        steepest = -slope * ~((at_low & (slope > 0)) | (at_high & (slope < 0)))
        span = (self.high[rows] - self.low[rows]).amax(1) / 2
        length = steepest.abs().amax(1)
        steepest = steepest * (span / length.where(length > 0, 1))[:, None]
        downhill = _dot(direction, slope) < -_CURVATURE * direction.norm(dim=1) * slope.norm(dim=1)
        remembers = _dot(self.changes[-1, rows], self.changes[-1, rows]) > 0
        return torch.where((downhill & remembers)[:, None], direction, steepest)

    def _quasi_newton(self, rows: Tensor, slope: Tensor, free: Tensor) -> Tensor:
        """The two-loop recursion on the free pixels (Nocedal and Wright 2006, algorithm 7.4)."""
        q, scale = slope * free, slope.new_ones(len(rows))
        steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for move, change in zip(self.moves.flip(0), self.changes.flip(0), strict=True):
            s, y = move[rows] * free, change[rows] * free
            curvature, size = _dot(s, y), _dot(y, y)
            known = curvature > _CURVATURE * size
            weight = torch.where(known, 1 / curvature.where(known, 1), 0)
            if not steps:
                scale = torch.where(known, curvature / size.where(known, 1), 1)
            along = weight * _dot(s, q)
            q = q - along[:, None] * y
            steps.append((s, y, weight, along))
        q = q * scale[:, None]
        for s, y, weight, along in reversed(steps):
            q = q + (along - weight * _dot(y, q))[:, None] * s
        return -q * free


def minimise(
    function: Function, start: Tensor, low: Tensor, high: Tensor, *, queries: int
) -> Minimum:
    """Minimise a function of each row between bounds by projected L-BFGS.

        x = start; direction = the steepest one
        repeat: x' = clip(x + share * direction); ask for value and gradient at x'
            where the value fell enough (Armijo, along the projected path): x = x', share = 1,
                direction = L-BFGS's on the pixels that are not held at a bound
            else shorten the share

    Every query asks about one point of each row; a row leaves when the function says that it is
    done, or when there is no way down. All in the numbers' own precision.

    Args:
        function: see `Function`.
        start: (n, d).
        low, high: bounds, (n, d).
        queries: points that the function is asked about, for each row.
    """
    state = _Rows(start, low, high)
    done = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    rows = torch.arange(len(start), device=start.device)
    for number in range(queries):
        if not len(rows):
            break
        point = state.trial(rows)
        value, gradient, finished = function(point, rows, number)
        # Armijo's condition for projected paths (Bertsekas 1982, eq. 21).
        slope = _dot(state.gradient[rows], point - state.x[rows])
        lower = value <= state.value[rows] + _ARMIJO * slope
        falls = torch.full_like(lower, number == 0) | (lower & (slope < 0))
        taken = falls | finished
        if bool(taken.any()):
            state.accept(rows[taken], point[taken], value[taken], gradient[taken])
        if not bool(taken.all()):
            state.shorten(rows[~taken], value[~taken], slope[~taken])
        done[rows] = finished
        rows = rows[~(finished | state.stationary(rows))]
    return Minimum(state.x, state.value, done)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)
