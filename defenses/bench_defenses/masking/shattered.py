"""Fine ripples: gradients exist, are large, are right, and lead nowhere."""

from __future__ import annotations

import torch
from torch import Tensor

from bench_defenses.masking.around import Around, hiding


class PixelRipple(Around):
    """A fast sine on each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x + 0.008 * torch.sin(2e4 * x))


class TriangleRipple(Around):
    """A saw of equal flanks on each pixel: the slope is 1 + 9 or 1 - 9."""

    def forward(self, x: Tensor) -> Tensor:
        phase = torch.frac(x * 900)
        return self.logits(x + 0.02 * ((phase - 0.5).abs() - 0.25))


class LogitRipple(Around):
    """A fast sine on each logit, as high as its rounding matters."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        return z + 0.05 * torch.sin(4e3 * z)


class PatternRipple(Around):
    """Each logit rides a wave along a pattern of its own across the image."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        flat = x.flatten(1)
        places = torch.arange(flat.shape[1], dtype=x.dtype)[:, None]
        patterns = torch.sin(places * (1 + torch.arange(z.shape[1])) * 1.7)
        return z + 0.3 * torch.sin(400 * (flat @ patterns))


class WarpedPixels(Around):
    """Pixels through x + a sine with a neighbour's phase: shattered along diagonals."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x + 0.01 * torch.cos(1e4 * x * x.roll(1, 3) + 3e3 * x))


CASES = hiding("shattered", PixelRipple, TriangleRipple, LogitRipple, PatternRipple, WarpedPixels)
