"""Optimisation inside the forward pass, cut off from the graph: what it does to an image has no
gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench_defenses.masking.around import Around, blurred, hiding


class Sharpened(Around):
    """Five sign steps that lower the entropy of its own answer."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().clone()
            for _ in range(5):
                y.requires_grad_(True)
                p = F.log_softmax(self.logits(y), 1)
                (slope,) = torch.autograd.grad(-(p.exp() * p).sum(), y)
                y = (y - 0.02 * slope.sign()).clamp(0, 1).detach()
        return self.logits(y + 0 * x)


class AntiAdversary(Around):
    """Two steps that make the predicted class more likely before it is read (Alfarra et al., AAAI
    2022, arXiv 2103.14347).
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().clone().requires_grad_(True)
            guess = self.logits(y).argmax(1)
            added = torch.zeros_like(y)
            for _ in range(2):
                loss = F.cross_entropy(self.logits(y + added), guess, reduction="sum")
                (slope,) = torch.autograd.grad(loss, y)
                added = added - 0.15 * slope.sign()
        return self.logits(x.detach() + added)


class Relaxed(Around):
    """Twenty steps of smoothing that stay near the image, without gradient."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x.clone()
            for _ in range(20):
                y = y + 0.3 * (blurred(y) - y) + 0.5 * (x - y)
        return self.logits(y)

    def see_through(self) -> nn.Module:
        """The same with its gradient."""
        return _Smoothed(self.net)


class _Smoothed(Around):
    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(20):
            y = y + 0.3 * (blurred(y) - y) + 0.5 * (x - y)
        return self.logits(y)


class Descended(Around):
    """Ten normalised gradient steps away from the runner-up class."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().clone()
            for _ in range(10):
                y.requires_grad_(True)
                top = self.logits(y).topk(2, 1).values
                (slope,) = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), y)
                length = slope.flatten(1).norm(dim=1).clamp_min(1e-12)
                y = (y + 0.1 * slope / length[:, None, None, None]).detach()
        return self.logits(x + (y - x).detach())


CASES = hiding("inner-loop", Sharpened, AntiAdversary, Relaxed, Descended)
