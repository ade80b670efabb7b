"""What searches read in a defense's place: the same passes with batch normalisations folded, or
computed in bfloat16 as well.

Slopes come from them. Whatever is said of a point, that it breaks the image above all, is said by
the defense itself. Another way to compute is taken only where logits, views and slopes agree with
the defense's on a few images, and what a shard's search was told is compared again where it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from bench.checks.alike import alike, rounding
from bench.defense import DefendedClassifier
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.models.folding import Folding, candidates, find_pairs
from bench.models.foreign import copied
from bench.models.narrow import Narrow
from bench.noise import Noise, Stream, isolated
from bench.victim import frozen

PROBED = 4
"""Images on which two ways to compute are compared."""

SLOPE_TOLERANCE = 1e-2
"""By how much of its length a gradient may differ: a rectifier at 0 may fall on either side."""

NARROW_TOLERANCE = 0.5
"""The same in bfloat16, where more of them do: 30 degrees. Ascent needs no closer direction."""

Quick = Folding | Narrow
"""A way to compute a defense that is quicker than its own, inside a block."""

LAYOUTS = (torch.channels_last, torch.contiguous_format)
"""Of kernels, the quicker one first: by a fifth on small networks of few channels."""

Passes = tuple[Tensor, Tensor | None]
"""An output (n, ...), and the gradient (n, C, H, W) of some direction of it, where there is one."""


def quick_form(
    evaluation: Evaluation, defended: DefendedClassifier, execution: Execution
) -> Quick | None:
    """The quickest wanted way to compute a defense that has seen no image; None where none is
    wanted, there is none, or all compute something else.

    The defense is not asked: a copy of it is.
    """
    if execution.compile == "off" or not (execution.compile == "on" or candidates(defended)):
        return None
    images = evaluation.setup.images.first(min(PROBED, len(evaluation.setup.images)))
    pixels = images.pixels().to(execution.device)
    # Whatever a stranger's network does here, it is evaluated all the same.
    try:
        copy = copied(defended).to(execution.device)
        with frozen(copy), isolated(evaluation.build_seed):
            pairs = find_pairs(copy, lambda: copy(pixels, _noise(images.ids, pixels)))
            for make in _forms(pairs, execution):
                if _agrees(copy, make(copy), evaluation.gradient, pixels, images.ids):
                    return make(defended)
    except Exception:
        pass
    return None


def _forms(
    pairs: list[tuple[str, str]], execution: Execution
) -> Iterator[Callable[[DefendedClassifier], Quick]]:
    """Ways to compute, the quickest first."""
    device = execution.device.type

    def narrow(defended: DefendedClassifier, layout: torch.memory_format, fold: bool) -> Quick:
        return Narrow(defended, device, folded(defended, layout) if fold else None, layout)

    def folded(defended: DefendedClassifier, layout: torch.memory_format) -> Folding:
        return Folding(defended, pairs, layout)

    if execution.compile == "on":
        for fold in (True, False) if pairs else (False,):
            for layout in LAYOUTS:
                yield partial(narrow, layout=layout, fold=fold)
    if pairs:
        for layout in LAYOUTS if device == "cpu" else LAYOUTS[1:]:
            yield partial(folded, layout=layout)


def _agrees(
    copy: DefendedClassifier, form: Quick, gradient: str, images: Tensor, ids: object
) -> bool:
    try:
        return Comparison(copy, form, gradient).agrees(images, ids)
    except Exception:
        return False


class Comparison:
    """A defense as it is and in a quick form.

    Args:
        defended: the defense, frozen.
        form: of it.
        gradient: the backward pass that the attack gets.
    """

    def __init__(self, defended: DefendedClassifier, form: Quick, gradient: str) -> None:
        self._defended, self._form, self._gradient = defended, form, gradient
        self._unit, self._tolerance = rounding(defended), SLOPE_TOLERANCE
        if isinstance(form, Narrow):
            self._unit, self._tolerance = max(self._unit, form.rounding), NARROW_TOLERANCE

    def agrees(self, images: Tensor, ids: object) -> bool:
        """Whether all views and the logits' slopes are the same up to rounding on these images."""
        if not self.leads_alike(images, ids):
            return False
        for view in self._defended.views():
            one, other = (self._output(images, ids, view, quick) for quick in (False, True))
            if view != "logits" and not alike(one, other, self._unit):
                return False
        return True

    def leads_alike(self, images: Tensor, ids: object) -> bool:
        """Whether logits and their slopes are the same up to rounding on these images."""
        (one, slope), (other, quick) = (self._slope(images, ids, which) for which in (False, True))
        if not alike(one, other, self._unit) or (slope is None) != (quick is None):
            return False
        return slope is None or quick is None or _near(slope, quick, self._tolerance)

    def _output(self, images: Tensor, ids: object, view: str, quick: bool) -> Tensor:
        forward = self._defended.forward_pass(self._gradient, view)
        with torch.no_grad(), self._form if quick else nullcontext():
            return forward(images, _noise(ids, images)).float().flatten(1)

    def _slope(self, images: Tensor, ids: object, quick: bool) -> Passes:
        leaf = images.detach().clone().requires_grad_()
        forward = self._defended.forward_pass(self._gradient)
        with torch.enable_grad(), self._form if quick else nullcontext():
            logits = forward(leaf, _noise(ids, images)).float()
        if not logits.requires_grad:
            return logits, None
        # A direction in which no two classes weigh the same.
        weights = torch.linspace(-1, 1, logits.shape[1], device=logits.device)
        (slope,) = torch.autograd.grad((logits * weights).sum(), leaf, allow_unused=True)
        return logits.detach(), slope


def _near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    one, other = one.flatten(1), other.flatten(1)
    if not torch.equal(torch.isfinite(one), torch.isfinite(other)):
        return False
    one, other = (torch.nan_to_num(each, 0.0, 0.0, 0.0).double() for each in (one, other))
    gap, length = (one - other).norm(dim=1), torch.maximum(one.norm(dim=1), other.norm(dim=1))
    return bool((gap <= tolerance * length).all())


def _noise(ids: object, images: Tensor) -> Noise:
    return Noise.of(0, Stream.FIXED, ids, device=images.device).at("forward")
