"""Gradients that are NaN or infinite, as natural code makes them: a loop that writes 0 for them
stands still and calls it robustness.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench_defenses.masking.around import Around, hiding


class RootOfPenalty(Around):
    """Subtracts the distance to the box [0, 1], which is 0 for every image: the root's slope at 0
    is infinite, times 0 it is NaN.
    """

    def forward(self, x: Tensor) -> Tensor:
        outside = (x - x.clamp(0, 1)).square().flatten(1).sum(1)
        return self.logits(x) - outside.sqrt()[:, None]


class EntropyOfPixels(Around):
    """Divides by a temperature out of the entropy of the pixels; `where` keeps 0 log 0 out of the
    value and not out of the gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        share = x.clamp_min(0).flatten(1)
        share = share / share.sum(1, keepdim=True)
        entropy = -torch.where(share > 0, share * share.log(), 0.0).sum(1, keepdim=True)
        return self.logits(x) / (1 + 0.01 * entropy)


class LogOfProbabilities(Around):
    """The logarithm of probabilities that underflow to 0: the answers are as before, and no slope
    is a number.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(30 * self.logits(x), 1).log()


class ColourSpread(Around):
    """Lowers the logits by how far the channels lie apart, in code written for colour: of one
    channel the variance is 0, and its root has no slope.
    """

    def forward(self, x: Tensor) -> Tensor:
        spread = x.var(1, correction=0).sqrt()
        return self.logits(x) - spread.flatten(1).mean(1, keepdim=True)


class MeanOfNothing(Around):
    """A mean over the pixels above 1, of which there are none: `where` hides 0 / 0, its slope
    stays.
    """

    def forward(self, x: Tensor) -> Tensor:
        above = (x > 1).flatten(1).float()
        count = above.sum(1)
        mean = torch.where(count > 0, (x.flatten(1) * above).sum(1) / count, 0.0)
        return self.logits(x) - mean[:, None]


class GammaThereAndBack(Around):
    """Pixels to the power 2.2 and back: the identity, whose slope at a black pixel is 0 times
    infinity.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x.pow(2.2).pow(1 / 2.2))


CASES = hiding(
    "non-finite",
    RootOfPenalty,
    EntropyOfPixels,
    LogOfProbabilities,
    ColourSpread,
    MeanOfNothing,
    GammaThereAndBack,
)
