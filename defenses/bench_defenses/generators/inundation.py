"""Gradient inundation (Choi et al. 2022, arXiv 2203.17008, section 4.2) of a grid that is not
there.

AIT lengthens a quantised student's step until enough weights change their quantised value. A
student in full precision rounds nothing: here the grid only says how long the step is. That is an
extension, no part of AIT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MOST = 100.0
"""The longest step, as a multiple of the optimiser's."""

_HALVINGS, _NEAR = 5, 0.01


@dataclass(frozen=True)
class Inundation:
    """How much a step must change.

    Attributes:
        bits: of the grid, 2^bits values between the least and the largest weight of each output
            channel.
        share: of the weights of a tensor that must move to another value.
    """

    bits: int
    share: float = 1e-3

    def codes(self, weight: Tensor) -> Tensor:
        """Number of the grid value nearest to each weight, by output channel (the first
        dimension).
        """
        flat = weight.flatten(1)
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        unit = (high - low).clamp_min(torch.finfo(flat.dtype).tiny) / (2**self.bits - 1)
        codes: Tensor = ((flat - low) / unit).round()
        return codes

    def changed(self, before: Tensor, step: Tensor, length: float) -> float:
        """r: the share of the weights whose code is another one after `length` times the step."""
        return float((self.codes(before + length * step) != self.codes(before)).float().mean())

    def length(self, before: Tensor, step: Tensor) -> float:
        """By how much the step is lengthened: 1 where it changes enough, else the result of
        `bracketed`.
        """
        return bracketed(lambda length: self.changed(before, step, length), self.share)


def bracketed(changed: Callable[[float], float], share: float) -> float:
    """The published search for a length with changed(length) = share: doubling, then up to five
    halvings of the last interval.

    At most `MOST`, where no length up to there changes enough. Any other answer changes at least
    0.99 of `share`.
    """
    # Choi et al. 2022, section 4.2: double the step, then halve the last interval.
    length = 1.0
    if changed(length) >= share:
        return length
    while changed(length) < share:
        if length >= MOST:
            return MOST
        length = min(2 * length, MOST)
    low, high = length / 2, length
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        there = changed(middle)
        if there >= share:
            high = middle
        else:
            low = middle
        if abs(there - share) < _NEAR * share:
            return middle
    return high


def weights(network: nn.Module) -> Iterator[nn.Parameter]:
    """Those of convolutions and linear layers."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            weight = part.weight
            assert isinstance(weight, nn.Parameter)
            yield weight


def lengthen(before: list[Tensor], network: nn.Module, inundation: Inundation) -> None:
    """Lengthen the step that led from `before` (in the order of `weights`) to the present weights,
    each tensor by itself.
    """
    with torch.no_grad():
        for old, weight in zip(before, weights(network), strict=True):
            step = weight - old
            weight.copy_(old + inundation.length(old, step) * step)
