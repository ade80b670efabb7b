"""Controls: honest means over members or views."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.zoo import Zoo
from bench.studies.cases import Case
from bench_defenses.masking.around import Honest, honest


class TwoNets(Honest):
    """The mean probability of two different networks."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.other = Zoo(name="mnist5k-flat").load(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = (F.softmax(self.logits(x), 1) + F.softmax(self.other(x), 1)) / 2
        return mean.clamp_min(1e-30).log()


class ThreeShifts(Honest):
    """The mean logits over three moved copies."""

    def forward(self, x: Tensor) -> Tensor:
        moved = [x, x.roll(1, 2), x.roll(1, 3)]
        return torch.stack([self.logits(y) for y in moved]).mean(0)


class TwoScales(Honest):
    """The mean logits about an image and a smaller copy in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        small = F.interpolate(x, size=24, mode="bilinear", align_corners=False)
        return self.logits(x) + self.logits(F.pad(small, (2, 2, 2, 2)))


CASES = (
    *honest("ensemble", TwoNets, ThreeShifts, TwoScales),
    Case("tte", "ensemble", "test-time ensembling", False, defense="tte", fitting="pgd"),
)
