"""Outputs on which the cross-entropy saturates: no decision changes, its gradient vanishes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench_defenses.masking.around import Around, hiding


class SigmoidHead(Around):
    """Each logit through a sigmoid, as a network of independent classes answers."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(x) / 2)


class ColdLogits(Around):
    """Logits times 5000, a temperature that was left in."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x) / 2e-4


class Cubed(Around):
    """The logits' third power, ten times: as sure as it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.logits(x).pow(3)


class HalfProbabilities(Around):
    """Probabilities in half precision, where all but one round to 0."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(12 * self.logits(x), 1).half().float()


class Relative(Around):
    """Logits over how far the best two are apart, to the fourth power: steep where it is sure."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        return 3 * z * (1 + z.square().mean(1, keepdim=True)).square()


CASES = hiding("saturated", SigmoidHead, ColdLogits, Cubed, HalfProbabilities, Relative)
