"""Controls: honest work on the input."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bench_defenses.masking.around import Honest, blurred, honest, with_gradient_of


class Standardised(Honest):
    """A normalisation inside, and its inverse."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.norm = nn.BatchNorm2d(1).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.norm((x - 0.1307) / 0.3081) * 0.3081 + 0.1307)


class EightBits(Honest):
    """Rounded to 256 levels, with the identity's gradient, as an 8-bit camera."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(with_gradient_of((x * 255).round() / 255, x))


class Smoothed(Honest):
    """A light blur, differentiable."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(0.7 * x + 0.3 * blurred(x))


class Resized(Honest):
    """To 32 x 32 pixels and back."""

    def forward(self, x: Tensor) -> Tensor:
        large = F.interpolate(x, size=32, mode="bilinear", align_corners=False)
        small = F.interpolate(large, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.logits(small)


class BrightnessShift(Honest):
    """Pixels a little brighter."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x + 0.02)


CASES = honest("input", Standardised, EightBits, Smoothed, Resized, BrightnessShift)
