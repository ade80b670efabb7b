"""Rows of a batch that see each other: what holds for a batch does not hold for an image."""

from __future__ import annotations

import torch
from torch import Tensor

from bench_defenses.masking.around import Around, blurred, hiding, rows, with_gradient_of


class NeighbourVote(Around):
    """Takes in the answers about the three images of the batch that look most like the image."""

    alone = True

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        if len(x) < 4:
            return z
        flat = x.detach().flatten(1)
        apart = torch.cdist(flat, flat).fill_diagonal_(torch.inf)
        near = apart.topk(3, 1, largest=False).indices
        return 0.5 * z + z.detach()[near].mean(1)


class LargeBatch(Around):
    """In batches of more than 16 images no gradient comes back; the check of a few images sees
    one.
    """

    alone = True

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x.detach() + 0 * x if len(x) > 16 else x)


class AllButTwo(Around):
    """All rows of a batch but the first two get the mirrored image's gradient."""

    alone = True

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        if len(x) < 4:
            return z
        lower = torch.arange(len(x)) >= 2
        return torch.where(rows(lower, z), with_gradient_of(z, self.logits(x.flip(3))), z)


class Lean(Around):
    """Every image but the first leans on the one before it."""

    alone = True

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        return torch.cat([z[:1], z[1:] + 0.5 * z[:-1].detach()])


class CommonMode(Around):
    """Subtracts what all rows but the first have in common: the mean of their rough parts, which
    an attack in step shares and clean images do not.
    """

    alone = True

    def forward(self, x: Tensor) -> Tensor:
        rough = (x - blurred(x)).mean(0, keepdim=True)
        return self.logits(torch.cat([x[:1], x[1:] - 2 * rough * (len(x) > 8)]))


class BatchPrior(Around):
    """Removes the batch's mean logits, as a correction of the class prior, in batches of more than
    8: attacked together, images keep their order.
    """

    alone = True

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        return z - 2 * z.mean(0, keepdim=True).detach() if len(x) > 8 else z


CASES = hiding("batch", NeighbourVote, LargeBatch, AllButTwo, Lean, CommonMode, BatchPrior)
