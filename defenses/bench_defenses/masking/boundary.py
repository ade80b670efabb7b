"""Another behaviour where the answer is nearly undecided: far from it, where a check looks, all is
as it should be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench_defenses.masking.around import (
    Around,
    confidence,
    gap,
    hiding,
    rows,
    with_gradient_of,
)


class NearDecoy(Around):
    """Where the best two logits are within 6, the gradient is that of the mirrored image."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        decoy = with_gradient_of(z, self.logits(x.flip(3).flip(2)))
        return torch.where((gap(z) < 6)[:, None], decoy, z)


class NearFlat(Around):
    """No gradient where the largest probability is below 0.999."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        return torch.where((confidence(z) < 0.999)[:, None], z.detach(), z)


class NearTurned(Around):
    """Near the boundary the gradient leads back."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        return torch.where((gap(z) < 4)[:, None], 2 * z.detach() - z, z)


class NearPattern(Around):
    """Near the boundary the gradient is one fixed pattern, whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        places = torch.arange(x[0].numel(), dtype=x.dtype)
        pattern = torch.sin(12.9 * places).reshape(x.shape[1:])
        slope = (x * pattern).flatten(1).sum(1, keepdim=True) * torch.linspace(-1, 1, z.shape[1])
        return torch.where((gap(z) < 5)[:, None], with_gradient_of(z, slope), z)


class NearSteps(Around):
    """Near the boundary the image is rounded to 32 levels, which has no slope."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            near = gap(self.logits(x)) < 5
        return self.logits(torch.where(rows(near, x), (x * 31).round() / 31, x))


CASES = hiding("boundary", NearDecoy, NearFlat, NearTurned, NearPattern, NearSteps)
