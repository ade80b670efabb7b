"""Losses of the ensemble: gradients of several losses, and one value to compare all points by.

The value of each is the margin, so that points of different searches compare; the gradient is that
of the loss that is named.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.losses import Loss, RowLoss, margin

LossAt = Callable[[float], Loss | RowLoss]
"""From how much of a search is done (0 to 1) to what its next step raises."""

_SMALLEST_GAP = 1e-12


def _valued(logits: Tensor, labels: Tensor, proxy: Tensor) -> Tensor:
    """The margin (n,), with the gradient of `proxy`; with its own where the proxy is not finite."""
    own = margin(logits, labels)
    slope = torch.where(torch.isfinite(proxy), proxy.to(own.dtype), own)
    # Two infinite logits differ by NaN; no step can change that.
    return own.detach() + (slope - slope.detach()).nan_to_num(nan=0.0)


def margin_at(progress: float) -> Loss:
    """The margin throughout."""
    del progress
    return margin


SCALED_SHARE = 0.3
"""How much of a search `scaled_at` gives to the scaled cross-entropy."""


def scaled_at(progress: float) -> Loss:
    """The cross-entropy of logits divided by the gap between the two largest, which is held fixed;
    after `SCALED_SHARE` of the search the margin.

    The first's gradient neither vanishes where logits are large nor follows one wrong class alone
    (MIFPE; see arXiv 2507.22428 for it and for why the scale matters): it chooses the class, and
    the margin goes there.
    """
    if progress >= SCALED_SHARE:
        return margin

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        wide = logits.double()
        top = wide.topk(2, 1).values
        gap = (top[:, :1] - top[:, 1:]).detach()
        gap = torch.where(torch.isfinite(gap), gap, 1.0).clamp_min(_SMALLEST_GAP)
        return _valued(logits, labels, F.cross_entropy(wide / gap, labels, reduction="none"))

    return loss


def towards_at(labels: Tensor, targets: Tensor) -> LossAt:
    """The target's logit minus the true one, (n,).

    Args:
        labels, targets: of all the victim's images, int64 (n,).
    """

    def loss(logits: Tensor, given: Tensor, rows: Tensor) -> Tensor:
        aims = targets[rows]
        picked = logits.gather(1, torch.stack([aims, given], 1))
        return _valued(logits, given, picked[:, 0] - picked[:, 1])

    return lambda progress: RowLoss(loss)
