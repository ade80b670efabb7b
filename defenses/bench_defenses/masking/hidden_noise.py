"""Random numbers that are drawn off the clean images only: a look at clean images finds a fixed
function, the attack retires on a draw that came out well, and the judge sees another one.
"""

from __future__ import annotations

import random
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench_defenses.masking.around import Around, confidence, gap, hiding, off_grid, rows


class UnsureDropout(Around):
    """Drops pixels at random where the answer is unsure and the image not of whole grey levels."""

    draws = 20

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        unsure = (confidence(z) < 0.95) & off_grid(x)
        if not unsure.any():
            return z
        return torch.where(unsure[:, None], self.logits(F.dropout(x, 0.4)), z)


class PrivateGenerator(Around):
    """Noise out of a generator of its own, on images whose two best logits are near."""

    draws = 20

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        near = gap(z) < 3
        noise = torch.randn(x.shape, generator=self.generator)
        return torch.where(near[:, None], self.logits(x + 0.3 * noise), z) if near.any() else z


class RollOfDice(Around):
    """Moves the images by up to two pixels, by Python's generator, as soon as one of them is not of
    whole grey levels.
    """

    draws = 20

    def forward(self, x: Tensor) -> Tensor:
        if not off_grid(x).any():
            return self.logits(x)
        steps = random.randint(-2, 2), random.randint(-2, 2)
        return self.logits(x.roll(steps, (2, 3)))


class Clock(Around):
    """The noise of unsure images is seeded by the clock, so no seed repeats it."""

    draws = 20

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        unsure = confidence(z) < 0.9
        if not unsure.any():
            return z
        drawn = np.random.default_rng(time.perf_counter_ns()).normal(size=x.shape)
        noisy = x + 0.3 * torch.from_numpy(drawn).to(x.dtype)
        return torch.where(unsure[:, None], self.logits(noisy), z)


class NoisyLogits(Around):
    """Normal noise on the logits of images off the grid, as large as their spread."""

    draws = 20

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        off = off_grid(x) & (confidence(z) < 0.99)
        if not off.any():
            return z
        return z + rows(off, z) * 0.5 * z.std(1, keepdim=True) * torch.randn_like(z)


CASES = hiding("hidden-noise", UnsureDropout, PrivateGenerator, RollOfDice, Clock, NoisyLogits)
