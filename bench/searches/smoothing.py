"""Ascent along a gradient that is estimated from function values."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.maximise import half_cosine
from bench.searches.search import (
    DRAWS,
    Incumbents,
    Reader,
    SearchResult,
    per_image,
    pixel_scale,
    reader,
)
from bench.threat import ThreatModel
from bench.victim import Victim

_MOMENTUM = 0.8


def smoothed(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 30,
    pairs: int = 16,
    radius: float = 0.5,
    restart: int = 0,
    draws: int = DRAWS,
) -> SearchResult:
    """Steepest ascent on the margin f smoothed by Gaussian noise: its gradient is

        E[(f(x + s u) - f(x - s u)) u] / (2 s),   u standard normal,

    estimated from antithetic pairs (Ilyas et al. 2018, arXiv 1804.08598, section 2.2; Salimans et
    al. 2017, arXiv 1703.03864, section 2). It exists where the function is flat, jumps or hides its
    gradient. Estimates are averaged over the steps with momentum; steps fall by a cosine from
    eps / 2. A survivor costs steps * (2 pairs + 1) + 1 forward passes a draw, no backward pass.

    Args:
        victim: whose function is read; see `reader` for its draws.
        images, labels: all the victim's images (n, C, H, W) and true labels, int64 (n,).
        rows: the images to search, int64 (m,).
        threat: ball, box and step direction.
        steps: number of steps.
        pairs: pairs of function values behind each step.
        radius: s, so that the noise is `radius` * eps long (under Linf: in each pixel).
        restart: part of the key of every random number.
        draws: draws a value under fresh randomness.
    """
    read = reader(victim, labels, restart, draws)
    best = Incumbents(victim, images, rows)
    scale = radius * pixel_scale(threat, images[0].numel())
    x = images[rows].clone()
    mean_slope = torch.zeros_like(x)
    for step in range(steps + 1):
        best.offer(read, x[best.active], ties=False)
        active = best.active
        if step == steps or not len(active):
            break
        normal = victim.random(rows[active], restart).normal(
            f"smoothed-{step}", (pairs, *images.shape[1:])
        )
        slope = _slope(read, x[active], rows[active], scale * normal)
        length = slope.flatten(1).norm(dim=1)
        slope = slope / per_image(torch.where(length > 0, length, torch.ones_like(length)), slope)
        mean_slope[active] = _MOMENTUM * mean_slope[active] + slope
        size = threat.eps * max(half_cosine(step, steps) / 2, 0.02)
        x[active] = threat.ascend(x[active], mean_slope[active], size, images[rows[active]])
    return best.result()


def _slope(read: Reader, x: Tensor, rows: Tensor, moves: Tensor) -> Tensor:
    """The smoothed gradient up to a factor, from moves (a, pairs, C, H, W)."""
    pairs = moves.shape[1]
    both = torch.stack([x[:, None] + moves, x[:, None] - moves], 2).clamp(0, 1)
    values, _ = read(both.flatten(0, 2), rows.repeat_interleave(2 * pairs))
    values = values.reshape(len(x), pairs, 2)
    difference = (values[..., 0] - values[..., 1]).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return torch.einsum("ap,ap...->a...", difference, moves)
