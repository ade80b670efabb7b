"""Another behaviour between the grey levels n/255: images of a data set lie on them, iterates of an
attack do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench_defenses.masking.around import Around, hiding, off_grid, rows, with_gradient_of


class GridFlat(Around):
    """No gradient off the grid."""

    def forward(self, x: Tensor) -> Tensor:
        off = rows(torch.frac(x.detach() * 255 + 1e-4).flatten(1).amax(1) > 2e-4, x)
        return self.logits(torch.where(off, x.detach() + 0 * x, x))


class GridTurned(Around):
    """The gradient points the other way off the grid."""

    def forward(self, x: Tensor) -> Tensor:
        off = rows(off_grid(x), x)
        return self.logits(torch.where(off, 2 * x.detach() - x, x))


class GridScattered(Around):
    """Off the grid each pixel gets the gradient of another pixel."""

    def forward(self, x: Tensor) -> Tensor:
        other = x.flatten(1).roll(97, 1).flip(1).reshape(x.shape)
        off = rows(off_grid(x), x)
        return self.logits(torch.where(off, with_gradient_of(x, other), x))


class GridSteep(Around):
    """Off the grid the logits are two thousand times as large: no decision changes, and the
    cross-entropy underflows.
    """

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        return torch.where(off_grid(x)[:, None], 2000 * z, z)


class GridBytes(Around):
    """Images that do not survive a round trip through bytes are taken apart from the graph."""

    def forward(self, x: Tensor) -> Tensor:
        back = (x.detach() * 255).round().to(torch.uint8).to(x.dtype) / 255
        same = torch.isclose(back, x.detach(), atol=1e-5).flatten(1).all(1)
        return self.logits(torch.where(rows(same, x), x, x.detach()))


CASES = hiding("grid", GridFlat, GridTurned, GridScattered, GridSteep, GridBytes)
