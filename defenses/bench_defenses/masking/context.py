"""Another behaviour where a gradient is asked for: the module sees whether it is attacked or
judged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench_defenses.masking.around import Around, hiding, with_gradient_of


class GradientMode(Around):
    """Answers about the mirrored image where gradients are switched on."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x.flip(3) if torch.is_grad_enabled() and x.requires_grad else x)


class AskedLeaf(Around):
    """The right answer with the mirrored image's gradient, where the image asks for one."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x.detach())
        return with_gradient_of(z, self.logits(x.flip(2))) if x.requires_grad else z


class HookReversed(Around):
    """A hook reverses the gradient, as domain-adversarial training does, and was left in."""

    def forward(self, x: Tensor) -> Tensor:
        seen = x * 1
        if seen.requires_grad:
            seen.register_hook(lambda slope: -0.1 * slope)
        return self.logits(seen)


class HookSparse(Around):
    """A hook keeps the gradient's entries below a thousandth of its largest one, to "stabilise"
    it.
    """

    def forward(self, x: Tensor) -> Tensor:
        seen = x * 1
        if seen.requires_grad:
            seen.register_hook(lambda slope: slope * (slope.abs() < 1e-3 * slope.abs().max()))
        return self.logits(seen)


class SharperInTraining(Around):
    """Logits a thousand times as large under gradients, as a forgotten training temperature: the
    loss underflows.
    """

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        return 1000 * z if z.requires_grad else z


CASES = hiding("context", GradientMode, AskedLeaf, HookReversed, HookSparse, SharperInTraining)
