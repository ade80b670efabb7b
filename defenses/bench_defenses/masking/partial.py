"""A gradient of a part only: some pixels, one branch, one member."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.nets import build
from bench_defenses.masking.around import Around, hiding, no_gradient


class FrozenBackbone(Around):
    """The network under `no_grad`, as one freezes a backbone, beside a small branch that learns
    nothing.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.branch = build("flat", 10, 1, seed=1).eval()

    def forward(self, x: Tensor) -> Tensor:
        beside: Tensor = self.branch(x)
        return no_gradient(self.logits, x) + 1e-3 * beside


class Corners(Around):
    """A gradient in the corners, where digits have no ink."""

    def forward(self, x: Tensor) -> Tensor:
        open_ = torch.zeros_like(x[0, 0])
        open_[:6, :6] = open_[-6:, -6:] = 1
        return self.logits(x * open_ + (x * (1 - open_)).detach())


class EveryThirdPixel(Around):
    """A gradient at every third pixel of every third row."""

    def forward(self, x: Tensor) -> Tensor:
        open_ = torch.zeros_like(x[0, 0])
        open_[::3, ::3] = 1
        return self.logits(x * open_ + (x * (1 - open_)).detach())


class ThumbnailOnly(Around):
    """The gradient reaches a thumbnail of 4 x 4 pixels alone."""

    def forward(self, x: Tensor) -> Tensor:
        small = F.interpolate(F.adaptive_avg_pool2d(x, 4), size=x.shape[2:])
        return self.logits(x.detach() + small - small.detach())


class BrightnessOnly(Around):
    """Standardised and put back; only the mean brightness keeps its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3), keepdim=True)
        return self.logits((x - mean).detach() + mean)


CASES = hiding("partial", FrozenBackbone, Corners, EveryThirdPixel, ThumbnailOnly, BrightnessOnly)
