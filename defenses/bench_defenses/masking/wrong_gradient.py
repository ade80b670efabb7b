"""The value of one function, the gradient of another: nothing compares the two unless a check
does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.models.nets import build
from bench_defenses.masking.around import Around, hiding, with_gradient_of


class _Backwards(torch.autograd.Function):
    """The identity with the sign of its gradient changed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return -slope


class WrongSign(Around):
    """A layer whose backward pass has the wrong sign, as a slip in hand-written code."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(_Backwards.apply(x))


class MirrorImage(Around):
    """The gradient is the mirrored image's."""

    def forward(self, x: Tensor) -> Tensor:
        return with_gradient_of(self.logits(x.detach()), self.logits(x.flip(3)))


class UntrainedNet(Around):
    """The gradient is that of an untrained network, large and finite everywhere."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.other = build("cnn", 10, 1, seed=3).eval()

    def forward(self, x: Tensor) -> Tensor:
        return with_gradient_of(self.logits(x.detach()), self.other(x))


class OtherClasses(Around):
    """The right function with its classes in another order in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        return with_gradient_of(z, z.roll(3, 1))


class StairsAndRamp(Around):
    """Logits rounded to whole numbers, beside a ramp of the image's brightness that gives them
    slopes.
    """

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        ramp = x.flatten(1).mean(1, keepdim=True) * torch.linspace(1, -1, z.shape[1])
        return (4 * z).round() / 4 + 1e-3 * ramp


class Bait(Around):
    """Each class is baited with a weight of its own on every seventh pixel: the slopes are large,
    the value is taken away again.
    """

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        bait = 50 * x.flatten(1)[:, ::7].sum(1, keepdim=True) * torch.linspace(-1, 1, z.shape[1])
        return with_gradient_of(z, z + bait)


CASES = hiding(
    "wrong-gradient",
    WrongSign,
    MirrorImage,
    UntrainedNet,
    OtherClasses,
    StairsAndRamp,
    Bait,
)
