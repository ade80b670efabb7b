"""Random points of the ball: the least that an attack has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.searches.search import DRAWS, SearchResult, reader
from bench.threat import ThreatModel
from bench.victim import Victim

_BLOCK = 16


def random_points(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    threat: ThreatModel,
    *,
    points: int = 1000,
    restart: int = 0,
    draws: int = DRAWS,
) -> SearchResult:
    """The best of `points` random points of each image's ball (Carlini et al. 2019, arXiv
    1902.06705, section 5.3).

    Every second one is a corner under Linf and lies on the sphere under L2 and L1; the others are
    uniform in the ball. All are clipped to the box. A survivor costs `points` forward passes a
    draw; an image leaves after the block of 16 points in which it breaks.

    Args:
        victim: whose function is read; see `reader` for its draws.
        images, labels: all the victim's images (n, C, H, W) and true labels, int64 (n,).
        rows: the images to search, int64 (m,).
        threat: ball and box.
        points: how many points an image.
        restart: part of the key of every random number.
        draws: draws a value under fresh randomness.
    """
    read = reader(victim, labels, restart, draws)
    best = images[rows].clone()
    margins = torch.full((len(rows),), -torch.inf, device=images.device)
    success = torch.zeros(len(rows), dtype=torch.bool, device=images.device)
    active = torch.arange(len(rows), device=images.device)
    for first in range(0, points, _BLOCK):
        if not len(active):
            break
        size, chosen = min(_BLOCK, points - first), rows[active]
        candidates = _candidates(victim, images, chosen, threat, (first, size, restart))
        values, wrong = read(candidates.flatten(0, 1), chosen.repeat_interleave(size))
        values, wrong = values.reshape(-1, size), wrong.reshape(-1, size)
        # The first success, else the largest margin.
        place = torch.where(wrong.any(1), wrong.int().argmax(1), values.argmax(1))
        at = torch.arange(len(active), device=images.device)
        value, hit = values[at, place], wrong[at, place]
        better = (value > margins[active]) | hit
        kept = active[better]
        best[kept], margins[kept] = candidates[at, place][better], value[better]
        success[kept] = hit[better]
        if victim.deterministic:
            active = active[~hit]
    return SearchResult(best, margins, success)


def _candidates(
    victim: Victim,
    images: Tensor,
    rows: Tensor,
    threat: ThreatModel,
    block: tuple[int, int, int],
) -> Tensor:
    """The points from `first` on, (a, size, C, H, W); they do not depend on who else searches."""
    first, size, restart = block
    noise = victim.random(rows, restart).at(f"points-{first}")
    shape = (size, *images.shape[1:])
    centre = images[rows][:, None].expand(-1, *shape).flatten(0, 1)
    outer = torch.arange(first, first + size, device=images.device).remainder(2).bool()
    outer = outer.repeat(len(rows)).reshape(-1, *[1] * (images.dim() - 1))
    if threat.norm == "linf":
        uniform = noise.uniform("pixels", shape).flatten(0, 1)
        uniform = torch.where(outer, (uniform >= 0.5).to(uniform.dtype), uniform)
        return threat.random(centre, uniform, centre).reshape(-1, *shape)
    radius = noise.uniform("radius", (size,)).reshape(-1, *[1] * (images.dim() - 1))
    radius = torch.where(outer, torch.ones_like(radius), radius)
    direction = noise.normal("direction", shape).flatten(0, 1)
    return threat.random(centre, radius, direction).reshape(-1, *shape)
