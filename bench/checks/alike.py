"""Whether two sets of logits are those of one function, up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.models.foreign import dtypes

KERNEL_TOLERANCE = 1e-4
"""By how much of their spread logits may differ between kernels, batches and orders."""


_TYPICAL = 10
"""The spread counts no more than so many times what lies between the largest logit and the middle
one: a class that is ruled out by a logit of -1e5 would excuse any difference of the others."""


def rounding(module: nn.Module) -> float:
    """The relative rounding of the coarsest numbers among its weights, at least float32's."""
    kinds = [torch.float32, *dtypes(module)]
    return float(max(torch.finfo(kind).eps for kind in kinds))


def alike(one: Tensor, other: Tensor, unit: float) -> bool:
    """Whether two passes (n, K) compute one function, up to the rounding of other kernels.

    torch takes other kernels where it needs no gradient (LSTM, attention). Their logits differ in
    proportion to how far the logits lie apart, and by the last digits of the logits themselves; a
    constant that is added to all logits changes no decision, and only the latter counts it.

    Args:
        one, other: logits of the same images.
        unit: relative rounding, see `rounding`.
    """
    finite = torch.isfinite(one)
    if one.shape != other.shape or not torch.equal(finite, torch.isfinite(other)):
        return False
    if not bool(finite.any()):
        return torch.equal(one, other)
    values = other[finite]
    spread = min(float((values - values.mean()).abs().max()), float(_typical(other).max()))
    slack = max(KERNEL_TOLERANCE, 4 * unit) * spread + 4 * unit * float(values.abs().max())
    return float((one[finite] - values).abs().max()) <= slack


def differing(one: Tensor, other: Tensor, unit: float) -> Tensor:
    """By how much the logits (n, K) of each image differ, in units of what rounding explains; (n,),
    above 1 where it does not.

    As `alike`, image by image; the spread is the image's own or that of most images, whichever is
    more. Infinite where one of the two is finite and the other is not.
    """
    same = (one == other) | (torch.isnan(one) & torch.isnan(other))
    finite = torch.isfinite(one) & torch.isfinite(other)
    values = torch.where(finite, other, torch.zeros_like(other))
    low = torch.where(finite, other, torch.full_like(other, torch.inf)).amin(1)
    high = torch.where(finite, other, torch.full_like(other, -torch.inf)).amax(1)
    spread = torch.where(finite.any(1), high - low, torch.zeros_like(high))
    spread = torch.minimum(spread, _typical(other))
    spread = torch.maximum(spread, spread.median())
    slack = max(KERNEL_TOLERANCE, 4 * unit) * spread + 4 * unit * values.abs().amax(1)
    gap = torch.where(same, torch.zeros_like(one), (one - other).abs())
    gap = torch.where(finite | same, gap, torch.full_like(gap, torch.inf)).amax(1)
    return torch.where(gap == 0, torch.zeros_like(gap), gap / slack)


def _typical(logits: Tensor) -> Tensor:
    """The most that the finite logits of each image (n, K) spread, but for ruled out classes."""
    shown = torch.where(torch.isfinite(logits), logits, torch.full_like(logits, torch.nan))
    top = shown.nan_to_num(-torch.inf).amax(1)
    return (_TYPICAL * (top - shown.nanmedian(1).values)).nan_to_num(0.0, 0.0, 0.0)
