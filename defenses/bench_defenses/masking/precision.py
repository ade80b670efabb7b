"""Controls: other numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench_defenses.masking.around import Honest, honest


class Doubled(Honest):
    """Double precision inside."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net.double())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x.double()).float()


class BrainFloat(Honest):
    """Weights and activations in bfloat16."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net.bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x.bfloat16()).float()


class ByteWeights(Honest):
    """Weights rounded to 255 levels a tensor, as a quantised network computes them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        with torch.no_grad():
            for weight in net.parameters():
                scale = weight.abs().max().clamp_min(1e-12) / 127
                weight.copy_((weight / scale).round() * scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


CASES = honest("precision", Doubled, BrainFloat, ByteWeights)
