"""Is the gradient that of the function? Differences of function values around a point tell."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.losses import RowLoss, margin
from bench.randomness import Query
from bench.threat import L1_STEP_SHARE, ThreatModel
from bench.victim import Victim

STEPS = (1 / 100, 1 / 10)
"""Lengths h of the steps to either side, in eps; see `step_lengths`."""
RANDOM_DIRECTIONS = 2

MIN_VOTES = 6
"""Fewer slopes than these say nothing."""
# Slopes are bad beyond these: the share of equal signs, the decimal logarithm of the median ratio,
# the mean mismatch.
AGREEMENT, RATIO, MISMATCH = 0.75, 1.0, 0.35
WORSE_AGREEMENT = 0.5
"""Of the longer step alone. Kinks within it bring honest networks down to .7."""

# No step moves a pixel farther than this. How close the kinks of an honest network lie is a matter
# of pixels, not of eps: an adversarially trained MNIST net has many of them within .003.
_FARTHEST = (3e-4, 1e-2)
_GREY_LEVEL = 1 / 255
_ABOVE_ROUNDING = 4.0
# Of the slope's standard deviation over random directions.
_TINY = 0.5


@dataclass(frozen=True)
class Slopes:
    """Measured slopes of the margin beside those that its gradient predicts.

    m images, three directions (the steepest, two random ones), two step lengths; NaN where there is
    nothing to compare: both changes lie below the rounding of the logits.

    Attributes:
        sign: 1 where both slopes have one sign, 0 where not, (m, 3, 2).
        ratio: decimal logarithm of |measured| / |predicted|, (m, 3, 2).
        mismatch: (measured - predicted)^2 / (measured^2 + predicted^2): 0 where they are equal, 1
            where one is far larger, 2 where they are opposite; random directions alone, (m, 3, 2).
    """

    sign: Tensor
    ratio: Tensor
    mismatch: Tensor


@dataclass(frozen=True)
class Verdict:
    """What the slopes of some images say together.

    By step length, the shorter first; NaN where fewer than `MIN_VOTES` could be compared.

    Attributes:
        agreement: share of slopes whose sign is the gradient's.
        ratio: decimal logarithm of the median of |measured| / |predicted|.
        mismatch: mean mismatch.
        fired: whether the gradient is not that of the function.
    """

    agreement: tuple[float, ...]
    ratio: tuple[float, ...]
    mismatch: tuple[float, ...]
    fired: bool


def unmeasured(m: int) -> Slopes:
    """Slopes of m images that were not measured."""
    nothing = torch.full((m, 1 + RANDOM_DIRECTIONS, len(STEPS)), torch.nan)
    return Slopes(nothing, nothing.clone(), nothing.clone())


def joined(parts: Iterable[Slopes]) -> Slopes:
    """Slopes of several shards as one."""
    many = list(parts)
    return Slopes(
        torch.cat([one.sign for one in many]),
        torch.cat([one.ratio for one in many]),
        torch.cat([one.mismatch for one in many]),
    )


def judge(slopes: Slopes) -> Verdict:
    """Whether the gradient is that of the function.

    It is not where the slopes are bad at both step lengths, or far off at the longer one. One
    alone may be honest: an input rounded to 8 bits is a staircase to the shorter step, and between
    the ends of the longer one lie many kinks.
    """
    lengths = range(slopes.sign.shape[-1])
    agreement = tuple(_middle(slopes.sign[..., k], mean=True) for k in lengths)
    ratio = tuple(_middle(slopes.ratio[..., k]) for k in lengths)
    mismatch = tuple(_middle(slopes.mismatch[..., k], mean=True) for k in lengths)
    # Comparisons with NaN are false: what could not be measured is not bad.
    bad = [
        a < AGREEMENT or abs(r) > RATIO or m > MISMATCH
        for a, r, m in zip(agreement, ratio, mismatch, strict=True)
    ]
    far_off = agreement[-1] < WORSE_AGREEMENT or abs(ratio[-1]) > RATIO
    return Verdict(agreement, ratio, mismatch, all(bad) or far_off)


def _middle(values: Tensor, *, mean: bool = False) -> float:
    """The median, or the mean, of the values that are not NaN; NaN where there are too few."""
    known = values[~values.isnan()]
    if len(known) < MIN_VOTES:
        return math.nan
    return float(known.mean() if mean else known.median())


def measure(
    victim: Victim,
    labels: Tensor,
    points: Tensor,
    threat: ThreatModel,
    rounding: float,
) -> tuple[Slopes, Tensor, Tensor]:
    """Compare the margin's gradient with differences of the margin.

    At each point x, pulled inside the box so far that no step leaves it, for the direction d of
    steepest ascent in the threat's norm and two random ones, all of length 1:

        (f(x + h d) - f(x - h d)) / 2h    against    grad f(x) . d

    The two sides of a step are read without gradient, as the judge reads. Costs 14 forward passes
    and one backward pass an image.

    Args:
        victim: of these images; its function must be fixed.
        labels: true labels, int64 (m,).
        points: where to look, (m, C, H, W).
        threat: its norm and eps.
        rounding: relative rounding of the coarsest numbers in the defense.

    Returns:
        The slopes; whether the gradient is zero everywhere, bool (m,); the logits at x, (m, K).
    """
    rows = torch.arange(len(points), device=points.device)
    shape = tuple(points.shape[1:])
    normal = victim.random(rows).at("slopes").normal("direction", (RANDOM_DIRECTIONS, *shape))
    random = unit(normal.flatten(0, 1), threat).reshape(normal.shape)
    lengths = step_lengths(threat)
    room = (max(lengths) * random.abs().flatten(1).amax(1)).clamp_max(max(_FARTHEST))
    x = torch.minimum(torch.maximum(points, _like(room, points)), 1 - _like(room, points))
    there = victim.logits(x, rows, Query())[:, 0]
    gradient = _gradient(victim, labels, x, there)
    directions = torch.cat([unit(gradient, threat)[:, None], random], 1)
    largest = directions.abs().flatten(2).amax(2).clamp_min(1e-30)
    # By image, direction and step length.
    h = torch.stack(
        [
            (torch.minimum(room[:, None], room.new_tensor(far)) / largest).clamp_max(length)
            for length, far in zip(lengths, _FARTHEST, strict=True)
        ],
        2,
    )
    logits = _logits_beside(victim, x, rows, directions, h)
    slopes = _compared(logits, labels, gradient, directions, h, rounding)
    return slopes, gradient.flatten(1).abs().amax(1) == 0, there


def step_lengths(threat: ThreatModel) -> tuple[float, ...]:
    """`STEPS` in the threat's norm. Under Linf the longest is a grey level where that is at most a
    quarter of eps: an input rounded to 8 bits does not answer to less.
    """
    lengths = [step * threat.eps for step in STEPS]
    if threat.norm == "linf":
        lengths[-1] = max(lengths[-1], min(_GREY_LEVEL, threat.eps / 4))
    return tuple(lengths)


def unit(x: Tensor, threat: ThreatModel) -> Tensor:
    """The direction of steepest ascent along a gradient (n, ...), of length 1 in the threat's norm;
    zero where the gradient is. In L1 it is spread as a step of the search is.
    """
    flat = x.flatten(1)
    if threat.norm == "linf":
        return x.sign()
    if threat.norm == "l2":
        length: Tensor = flat.norm(dim=1, keepdim=True)
        return (flat / length.clamp_min(1e-30)).reshape(x.shape)
    count = math.ceil(L1_STEP_SHARE * flat.shape[1])
    top = flat.abs().topk(count, dim=1).indices
    spread = torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign() / count)
    return spread.reshape(x.shape)


def _like(per_image: Tensor, images: Tensor) -> Tensor:
    return per_image.reshape(-1, *[1] * (images.dim() - 1))


def _gradient(victim: Victim, labels: Tensor, x: Tensor, logits: Tensor) -> Tensor:
    """The margin's gradient as an attack gets it, (m, C, H, W).

    A victim runs no backward pass where all images are answered with their target: the target is
    the class that is farthest from the answer.
    """
    farthest = logits.nan_to_num(nan=torch.inf).argmin(1)
    loss = RowLoss(lambda output, targets, rows: margin(output, labels[rows]))
    objective = victim.objective(labels, loss, targets=farthest)
    gradient = objective(x, torch.arange(len(x), device=x.device), 0, True).gradient
    return torch.zeros_like(x) if gradient is None else gradient


def _logits_beside(
    victim: Victim, x: Tensor, rows: Tensor, directions: Tensor, h: Tensor
) -> Tensor:
    """Logits (m, directions, steps, 2, K) after a step forth and back along each direction."""
    moves = directions[:, :, None] * h[..., *[None] * (x.dim() - 1)]
    both = torch.stack([x[:, None, None] + moves, x[:, None, None] - moves], 3).clamp(0, 1)
    count = both.shape[1:4].numel()
    logits = victim.logits(both.flatten(0, 3), rows.repeat_interleave(count), Query())[:, 0]
    return logits.reshape(*both.shape[:4], -1)


def _compared(
    logits: Tensor,
    labels: Tensor,
    gradient: Tensor,
    directions: Tensor,
    h: Tensor,
    rounding: float,
) -> Slopes:
    """Slopes from the logits beside the points, see `_logits_beside`."""
    repeated = labels.repeat_interleave(logits.shape[1:4].numel())
    margins = margin(logits.double().flatten(0, 3), repeated).reshape(logits.shape[:4])
    measured = margins[..., 0] - margins[..., 1]
    flat = gradient.double().flatten(1)
    slope = torch.einsum("mdp,mp->md", directions.double().flatten(2), flat)
    predicted = 2 * h * slope[..., None]
    # What rounding does to the two logits of a margin, and to the pixels on the way in.
    largest = logits.abs().flatten(1, 3).nan_to_num(posinf=0.0).amax((1, 2)).double()
    error = rounding * (4 * largest + 2 * flat.norm(dim=1))
    error = error[:, None, None] + torch.zeros_like(measured)
    size = torch.maximum(measured.abs(), predicted.abs())
    told = torch.isfinite(measured) & (size > _ABOVE_ROUNDING * error)
    spread = 2 * h * (directions.double().flatten(2).norm(dim=2) / flat.shape[1] ** 0.5)[..., None]
    typical = spread * flat.norm(dim=1)[:, None, None]
    steepest = torch.zeros_like(told)
    steepest[:, 0] = True
    nan = torch.full_like(measured, torch.nan)
    signs = (measured.sign() == predicted.sign()).double()
    votes = told & (torch.minimum(measured.abs(), predicted.abs()) > _ABOVE_ROUNDING * error)
    votes &= steepest | (predicted.abs() > _TINY * typical)
    ratio = torch.log10((measured.abs() + error) / (predicted.abs() + error))
    both = measured.square() + predicted.square()
    mismatch = (measured - predicted).square() / both.clamp_min(1e-300)
    weighty = told & ~steepest & (size > _TINY * typical)
    return Slopes(
        torch.where(votes, signs, nan).float(),
        torch.where(told, ratio, nan).float(),
        torch.where(weighty, mismatch, nan).float(),
    )
