"""What searches read in a defense's place: the same passes with batch normalisations folded.

Slopes come from them. Whatever is said of a point, that it breaks the image above all, is said by
the defense itself. A fold is taken only where logits, views and slopes agree with the defense's on
a few images, and what a shard's search was told is compared again where it ended.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from bench.checks.alike import alike, rounding
from bench.defense import DefendedClassifier
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.models.folding import Folding, candidates, find_pairs
from bench.models.foreign import copied
from bench.noise import Noise, Stream, isolated
from bench.victim import frozen

PROBED = 4
"""Images on which two ways to compute are compared."""

SLOPE_TOLERANCE = 1e-2
"""By how much of its length a gradient may differ: a rectifier at 0 may fall on either side."""

Passes = tuple[Tensor, Tensor | None]
"""An output (n, ...), and the gradient (n, C, H, W) of some direction of it, where there is one."""


def folding_of(
    evaluation: Evaluation, defended: DefendedClassifier, execution: Execution
) -> Folding | None:
    """The fold of a defense that has seen no image; None where there is nothing to fold, where a
    fold computes something else, or where it is not wanted.

    The defense is not asked: a copy of it is.
    """
    if execution.compile == "off" or not candidates(defended):
        return None
    images = evaluation.setup.images.first(min(PROBED, len(evaluation.setup.images)))
    pixels = images.pixels().to(execution.device)
    # Whatever a stranger's network does here, without a fold it is evaluated all the same.
    try:
        copy = copied(defended).to(execution.device)
        with frozen(copy), isolated(evaluation.build_seed):
            pairs = find_pairs(copy, lambda: copy(pixels, _noise(images.ids, pixels)))
            if not pairs:
                return None
            probe = Comparison(copy, Folding(copy, pairs), evaluation.gradient)
            if not probe.agrees(pixels, images.ids):
                return None
        return Folding(defended, pairs)
    except Exception:
        return None


class Comparison:
    """A defense with and without its fold.

    Args:
        defended: the defense, frozen.
        folding: of it.
        gradient: the backward pass that the attack gets.
    """

    def __init__(self, defended: DefendedClassifier, folding: Folding, gradient: str) -> None:
        self._defended, self._folding, self._gradient = defended, folding, gradient
        self._unit = rounding(defended)

    def agrees(self, images: Tensor, ids: object) -> bool:
        """Whether all views and the logits' slopes are the same up to rounding on these images."""
        if not self.leads_alike(images, ids):
            return False
        for view in self._defended.views():
            one, other = (self._output(images, ids, view, fold) for fold in (False, True))
            if view != "logits" and not alike(one, other, self._unit):
                return False
        return True

    def leads_alike(self, images: Tensor, ids: object) -> bool:
        """Whether logits and their slopes are the same up to rounding on these images."""
        (one, slope), (other, folded) = (self._slope(images, ids, fold) for fold in (False, True))
        if not alike(one, other, self._unit) or (slope is None) != (folded is None):
            return False
        return slope is None or folded is None or _near(slope, folded)

    def _output(self, images: Tensor, ids: object, view: str, fold: bool) -> Tensor:
        forward = self._defended.forward_pass(self._gradient, view)
        with torch.no_grad(), self._folding if fold else nullcontext():
            return forward(images, _noise(ids, images)).float().flatten(1)

    def _slope(self, images: Tensor, ids: object, fold: bool) -> Passes:
        leaf = images.detach().clone().requires_grad_()
        forward = self._defended.forward_pass(self._gradient)
        with torch.enable_grad(), self._folding if fold else nullcontext():
            logits = forward(leaf, _noise(ids, images)).float()
        if not logits.requires_grad:
            return logits, None
        # A direction in which no two classes weigh the same.
        weights = torch.linspace(-1, 1, logits.shape[1], device=logits.device)
        (slope,) = torch.autograd.grad((logits * weights).sum(), leaf, allow_unused=True)
        return logits.detach(), slope


def _near(one: Tensor, other: Tensor) -> bool:
    one, other = one.flatten(1), other.flatten(1)
    if not torch.equal(torch.isfinite(one), torch.isfinite(other)):
        return False
    one, other = (torch.nan_to_num(each, 0.0, 0.0, 0.0).double() for each in (one, other))
    gap, length = (one - other).norm(dim=1), torch.maximum(one.norm(dim=1), other.norm(dim=1))
    return bool((gap <= SLOPE_TOLERANCE * length).all())


def _noise(ids: object, images: Tensor) -> Noise:
    return Noise.of(0, Stream.FIXED, ids, device=images.device).at("forward")
