"""A second path for images that look attacked, out of the gradient's reach."""

from __future__ import annotations

import torch
from torch import Tensor

from bench_defenses.masking.around import (
    Around,
    blurred,
    confidence,
    hiding,
    no_gradient,
    rows,
)


class PaletteGate(Around):
    """Images of more than 256 shades, which a file of bytes cannot hold, are rounded to 64."""

    def forward(self, x: Tensor) -> Tensor:
        shades = torch.tensor([len(image.unique()) for image in x.detach()])
        return self.logits(torch.where(rows(shades > 256, x), (x * 63).round() / 63, x))


class Cascade(Around):
    """A second opinion under `no_grad` where the first one is unsure."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.logits(x)
        second = no_gradient(self.logits, x)
        return torch.where((confidence(first) < 0.98)[:, None], second, first)


class InkGate(Around):
    """Images with grey where paper should be white go through a threshold."""

    def forward(self, x: Tensor) -> Tensor:
        grey = ((x > 0.01) & (x < 0.12)).flatten(1).float().mean(1) > 0.05
        return self.logits(torch.where(rows(grey, x), x.detach(), x))


class MirrorGate(Around):
    """Where the answer about a smoothed copy differs, the gradient is the smoothed mirror image's,
    whose value is taken away.
    """

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        other = self.logits(blurred(x).flip(2))
        odd = (z.detach() - self.logits(blurred(x)).detach()).abs().amax(1) > 1.5
        return torch.where(rows(odd, z), z.detach() + other - other.detach(), z)


CASES = hiding("switch", PaletteGate, Cascade, InkGate, MirrorGate)
