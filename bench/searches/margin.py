"""Gradient ascent on the margin with a falling step."""

from __future__ import annotations

from torch import Tensor

from bench.losses import margin, misclassified
from bench.maximise import ascend, half_cosine
from bench.randomness import Query
from bench.searches.search import SearchResult
from bench.threat import ThreatModel
from bench.victim import Victim

_SMALLEST = 0.01
"""Of the first step: how long the last one is."""


def margin_steps(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    start: Tensor | None = None,
    first: float = 1.0,
    restart: int = 0,
) -> SearchResult:
    """Steepest ascent on the margin, whose step falls by a cosine from `first` * eps.

    The margin does not saturate where a cross-entropy does (Carlini and Wagner 2017, f6), and a
    falling step finds small ones. An image leaves at its first success where the victim is
    `deterministic`. Each step reads the victim's gradient under its own randomness; where that is
    not `fixed`, the last iterate is returned, since the largest margin seen is a chance hit. A
    survivor costs steps + 1 forward and `steps` backward passes a draw, and one forward pass more
    where the victim is not `fixed`.

    Args:
        victim: whose gradient is followed.
        images, labels: all the victim's images (n, C, H, W) and true labels, int64 (n,).
        rows: the images to search, int64 (m,).
        threat: ball, box and step direction.
        steps: number of steps.
        start: starting points of `rows`, (m, C, H, W); the images themselves by default.
        first: length of the first step, in eps.
        restart: part of the key of every draw.
    """
    origin = images[rows]
    start = origin if start is None else threat.project(start, origin)
    length = first * threat.eps

    def size(iteration: int) -> float:
        return length * (_SMALLEST + (1 - _SMALLEST) * half_cosine(iteration, steps))

    objective = victim.objective(labels, margin, rows=rows, restart=restart)
    ascent = ascend(objective, start, origin, threat, steps=steps, size=size)
    if victim.fixed:
        return SearchResult(ascent.points, ascent.values, ascent.success)
    logits = victim.logits(ascent.last, rows, Query(restart, steps + 1))
    wrong = misclassified(logits.flatten(0, 1), labels[rows].repeat_interleave(logits.shape[1]))
    values = margin(logits.mean(1), labels[rows])
    return SearchResult(ascent.last, values, wrong.reshape(len(rows), -1).all(1))
