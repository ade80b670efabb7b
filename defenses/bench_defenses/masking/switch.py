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


class RoughnessGate(Around):
    """Images rougher than clean ones are cleaned of faint pixels without gradient."""

    def forward(self, x: Tensor) -> Tensor:
        rough = (x - blurred(x)).abs().flatten(1).mean(1) > 0.075
        cleaned = torch.where(x < 0.11, 0.0, x).detach()
        return self.logits(torch.where(rows(rough, x), cleaned, x))


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
        odd = (z.detach() - self.logits(blurred(x)).detach()).abs().amax(1) > 4
        return torch.where(rows(odd, z), z.detach() + other - other.detach(), z)


CASES = hiding("switch", RoughnessGate, Cascade, InkGate, MirrorGate)
