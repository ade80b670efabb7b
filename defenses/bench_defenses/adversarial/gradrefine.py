"""GradRefine: a parameter moves where the gradients of several batches agree on the direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class GradRefine:
    """Accumulates gradients of up to `size` batches, all taken at the same weights (Lee et al.
    2024, ICML, eq. 9 and 10).

    Of each element it keeps how many batches pull it up and down, the sum of the positive gradients
    and that of the negative ones: three numbers, however many batches there are. With one batch,
    what comes out is what went in.

    Args:
        size: batches in a group.
        threshold: tau, the share of the batches by which one sign must outweigh the other, in
            [0, 1]; zeros abstain, but count as batches.
    """

    def __init__(self, size: int, threshold: float) -> None:
        self.size, self.threshold = size, threshold
        self.count = 0
        self._votes: list[Tensor] = []
        self._up: list[Tensor] = []
        self._down: list[Tensor] = []

    @property
    def full(self) -> bool:
        """Whether the group is complete."""
        return self.count == self.size

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Enter one batch's gradients, in the same order each time."""
        if not self.count:
            narrow = torch.int8 if self.size <= torch.iinfo(torch.int8).max else torch.int16
            self._votes = [torch.zeros_like(g, dtype=narrow) for g in gradients]
            self._up, self._down = ([torch.zeros_like(g) for g in gradients] for _ in range(2))
        for votes, up, down, gradient in zip(
            self._votes, self._up, self._down, gradients, strict=True
        ):
            votes += gradient.sign().to(votes.dtype)
            up += gradient.clamp_min(0)
            down += gradient.clamp_max(0)
        self.count += 1

    def take(self) -> list[Tensor]:
        """The refined gradients of the batches so far, which may be fewer than `size`; the group
        begins anew.

        Where the signs agree, the sum (not the mean) over the batches of that sign; elsewhere 0.
        """
        # Lee et al. 2024, eq. 9: Phi(A) = 1 where |A| >= tau, A = votes / count.
        needed = self.threshold * self.count
        # Eq. 10: the sum over the batches whose sign is that of A.
        refined = [
            torch.where(votes > 0, up, down) * ((votes != 0) & (votes.abs() >= needed))
            for votes, up, down in zip(self._votes, self._up, self._down, strict=True)
        ]
        self.count, self._votes, self._up, self._down = 0, [], [], []
        return refined
