"""Random search with squares (Andriushchenko et al. 2020, arXiv 1912.00049), in our own words."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.noise import Noise
from bench.searches.search import DRAWS, Incumbents, SearchResult, per_image, reader
from bench.threat import Ball, ThreatModel
from bench.victim import Victim

# Of 10,000 queries: when the share of the pixels that a square covers is halved (section 4.1).
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_FIRST_SHARE = 0.8
_BLOCK = 64
"""Queries whose random numbers are drawn at once."""


def square(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    threat: ThreatModel,
    *,
    queries: int = 1000,
    restart: int = 0,
    draws: int = DRAWS,
) -> SearchResult:
    """Random search: move one square of the perturbation, keep it where the margin does not fall.

        x = stripes (Linf) or bumps in a grid (L2, L1), of full length
        for each query:
            a square window of a size that falls over the queries, at a random place
            Linf: its pixels get -eps or +eps, one sign a channel (algorithm 2)
            L2, L1: its pixels get the length of a second window, which is emptied, and all that
            is still unspent, in the direction of a bump plus what was there (algorithm 3)

    No gradient is read, so that nothing that is wrong with the gradient can stop it. Moves that tie
    are kept as well (the paper keeps only better ones): the search walks on where the function is
    flat. An image leaves at its first success where the victim is `deterministic`; under fresh
    randomness values are means over a fixed sample of draws (see `reader`). A survivor costs
    `queries` forward passes a draw.

    Args:
        victim: whose function is read.
        images, labels: all the victim's images (n, C, H, W) and true labels, int64 (n,).
        rows: the images to search, int64 (m,).
        threat: ball and box.
        queries: points that are read of each image.
        restart: part of the key of every random number.
        draws: draws a value under fresh randomness.
    """
    read = reader(victim, labels, restart, draws)
    best = Incumbents(victim, images, rows)
    channels, height, width = images.shape[1:]
    start = _stripes if threat.norm == "linf" else _bumps
    best.offer(read, start(victim.random(rows, restart).at("square"), images[rows], threat))
    active, ball = best.active, threat.around(images[rows[best.active]])
    for query in range(1, queries):
        if active is not best.active:
            active, ball = best.active, threat.around(images[rows[best.active]])
        if not len(active):
            break
        if (query - 1) % _BLOCK == 0:
            noise = victim.random(rows, restart).at(f"square-{(query - 1) // _BLOCK}")
            uniform = noise.uniform("moves", (_BLOCK, 5 + channels))
        numbers = uniform[active, (query - 1) % _BLOCK]
        side = _side(query, queries, height, width)
        x = best.points[active]
        if threat.norm == "linf":
            candidates = _move_linf(x, ball, numbers, side)
        else:
            candidates = _move_length(x, ball.origin, threat, numbers, side)
        best.offer(read, candidates)
    return best.result()


def _side(query: int, queries: int, height: int, width: int) -> int:
    """The side of the window at a query, in pixels; 1 to the image's smaller side."""
    halvings = sum(query > at * queries / 10_000 for at in _HALVED_AT)
    side = round(math.sqrt(_FIRST_SHARE / 2**halvings * height * width))
    return min(max(side, 1), height, width)


def _stripes(noise: Noise, images: Tensor, threat: ThreatModel) -> Tensor:
    """Columns of one pixel at -eps or +eps, one sign a channel and column."""
    channels, _, width = images.shape[1:]
    signs = _signs(noise.uniform("start", (channels, 1, width)))
    return threat.project(images + threat.eps * signs, images)


def _signs(uniform: Tensor) -> Tensor:
    """-1 or 1, of the shape of numbers in [0, 1)."""
    return 1 - 2 * (uniform < 0.5).to(uniform.dtype)


def _window(place: Tensor, side: int, height: int, width: int) -> Tensor:
    """A mask (n, 1, H, W) of a square window, from two numbers in [0, 1) an image (n, 2)."""
    top = (place[:, 0] * (height - side + 1)).floor().reshape(-1, 1, 1, 1)
    left = (place[:, 1] * (width - side + 1)).floor().reshape(-1, 1, 1, 1)
    down = torch.arange(height, device=place.device).reshape(1, 1, -1, 1)
    across = torch.arange(width, device=place.device).reshape(1, 1, 1, -1)
    rows, columns = (down >= top) & (down < top + side), (across >= left) & (across < left + side)
    return rows & columns


def _move_linf(x: Tensor, ball: Ball, numbers: Tensor, side: int) -> Tensor:
    height, width = x.shape[2:]
    window = _window(numbers[:, :2], side, height, width)
    signs = _signs(numbers[:, 5:]).reshape(len(x), -1, 1, 1)
    return ball.project(torch.where(window, ball.origin + ball.threat.eps * signs, x))


def _length(delta: Tensor, norm: str) -> Tensor:
    """Length of each perturbation in the norm, (n,)."""
    length: Tensor = delta.flatten(1).norm(p=1 if norm == "l1" else 2, dim=1)
    return length


def _bump(side: int, device: torch.device) -> Tensor:
    """A pattern (side, side): a hill in its upper half, a valley in its lower one, of length 1.

    The paper's eta (eq. 2) is a staircase; its steps 1/k^2 stand here at the distance from the
    middle.
    """
    down = torch.arange(side, device=device, dtype=torch.float32)
    half = side / 2
    middle = torch.where(down < half, half / 2 - 0.5, side - half / 2 - 0.5)
    distance = torch.maximum(
        (down - middle).abs()[:, None], (down - (side - 1) / 2).abs()[None, :] / 2
    )
    hill = 1 / (1 + distance).square()
    pattern = torch.where((down < half)[:, None], hill, -hill) if side > 1 else hill
    unit: Tensor = pattern / pattern.norm()
    return unit


def _placed(place: Tensor, side: int, turned: Tensor, shape: torch.Size) -> Tensor:
    """The bump at each image's window, zero elsewhere, (n, 1, H, W); transposed where `turned`."""
    height, width = shape[2:]
    bump = _bump(side, place.device)
    window = _window(place, side, height, width).expand(-1, 1, -1, -1)
    patterns = torch.where(turned.reshape(-1, 1, 1), bump.T, bump)
    canvas = torch.zeros(len(place), 1, height, width, device=place.device)
    # A window's pixels come in the order of its rows, as the pattern's do.
    canvas[window] = patterns.flatten()
    return canvas


def _bumps(noise: Noise, images: Tensor, threat: ThreatModel) -> Tensor:
    """Bumps in a grid of up to 5 x 5 windows, one sign a channel, of length eps together."""
    channels, height, width = images.shape[1:]
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    signs = _signs(noise.uniform("start", (channels, down, across)))
    bump = _bump(side, images.device)
    canvas = torch.zeros_like(images)
    grid = signs.repeat_interleave(side, 2).repeat_interleave(side, 3)
    canvas[:, :, : down * side, : across * side] = grid * bump.repeat(down, across)
    scale = threat.eps / _length(canvas, threat.norm)
    return threat.project(images + per_image(scale, images) * canvas, images)


def _move_length(
    x: Tensor, origin: Tensor, threat: ThreatModel, numbers: Tensor, side: int
) -> Tensor:
    """Algorithm 3: the length of two windows, and what is unspent, goes into the first one."""
    height, width = x.shape[2:]
    delta, power = x - origin, 1 if threat.norm == "l1" else 2
    first = _window(numbers[:, :2], side, height, width)
    second = _window(numbers[:, 2:4], side, height, width)
    unspent = (threat.eps**power - _length(delta, threat.norm) ** power).clamp_min(0)
    windows = _length(delta * (first | second), threat.norm) ** power
    signs = _signs(numbers[:, 5:]).reshape(len(x), -1, 1, 1)
    bump = signs * _placed(numbers[:, :2], side, numbers[:, 4] < 0.5, x.shape)
    old = delta * first
    direction = bump / per_image(_length(bump, threat.norm).clamp_min(1e-10), x)
    direction = direction + old / per_image(_length(old, threat.norm).clamp_min(1e-10), x)
    length = _length(direction, threat.norm).clamp_min(1e-10)
    moved = direction * per_image((unspent + windows) ** (1 / power) / length, x)
    delta = torch.where(first, moved, torch.where(second, torch.zeros_like(delta), delta))
    return threat.project(origin + delta, origin)
