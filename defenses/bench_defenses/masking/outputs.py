"""Controls: other outputs of the same decisions, moderate enough for the loss to follow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench_defenses.masking.around import Honest, honest


class LogSoftmax(Honest):
    """Log-probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.logits(x), 1)


class ModerateTemperature(Honest):
    """Logits over two."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x) / 2


class Shifted(Honest):
    """A constant added to all logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x) + 100


class ClassBias(Honest):
    """A small bias for each class."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x) + 0.1 * torch.linspace(-1, 1, 10)


class ClampedLogits(Honest):
    """Logits clamped to a range that they rarely leave."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).clamp(-40, 40)


CASES = honest("output", LogSoftmax, ModerateTemperature, Shifted, ClassBias, ClampedLogits)
