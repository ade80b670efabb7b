"""Steps without a slope: rounding, sorting, other libraries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench_defenses.masking.around import Around, hiding


class Bytes(Around):
    """The image through bytes and back."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits((x.detach() * 255).to(torch.uint8).to(x.dtype) / 255)


class SixteenLevels(Around):
    """Sixteen grey levels: rounding has slope 0."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits((x * 15).round() / 15)


class RoundedLogits(Around):
    """Logits printed with one digit behind the point."""

    def forward(self, x: Tensor) -> Tensor:
        return (10 * self.logits(x)).round() / 10


class MedianByIndex(Around):
    """A 3 x 3 median in NumPy."""

    def forward(self, x: Tensor) -> Tensor:
        padded = np.pad(x.detach().cpu().numpy(), [(0, 0), (0, 0), (1, 1), (1, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        middle = np.partition(windows.reshape(*windows.shape[:4], 9), 4, -1)[..., 4]
        return self.logits(torch.from_numpy(middle.astype(np.float32)))

    def see_through(self) -> nn.Module:
        """The same in torch, where a median has a gradient."""
        return _Median(self.net)


class _Median(Around):
    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, 3, padding=1).reshape(len(x), 9, -1)
        return self.logits(windows.median(1).values.reshape(x.shape))


class VoteOfShifts(Around):
    """Counts the answers about three moved copies: a count has no slope."""

    def forward(self, x: Tensor) -> Tensor:
        moved = [x, x.roll(1, 2), x.roll(1, 3)]
        votes = [F.one_hot(self.logits(y).argmax(1), 10) for y in moved]
        return torch.stack(votes).sum(0).float() + 0 * x.flatten(1).sum(1, keepdim=True)

    def see_through(self) -> nn.Module:
        """The mean of the logits about the same copies."""
        return _MeanOfShifts(self.net)


class _MeanOfShifts(Around):
    def forward(self, x: Tensor) -> Tensor:
        moved = [x, x.roll(1, 2), x.roll(1, 3)]
        return torch.stack([self.logits(y) for y in moved]).mean(0)


CASES = hiding("discrete", Bytes, SixteenLevels, RoundedLogits, MedianByIndex, VoteOfShifts)
