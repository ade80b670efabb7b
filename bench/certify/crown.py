"""CROWN and alpha-CROWN: a lower bound of the margin over a whole ball.

Zhang et al. 2018 (arXiv 1811.00866) and Xu et al. 2021 (arXiv 2011.13824): each ReLU lies between
two lines, so the margin lies above an affine function of the image, whose least value over the ball
is known. Where it is positive, no image in the ball is answered otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.certify.lines import Backward, Lines, Network, backward, relu_inputs
from bench.certify.segments import ROUNDING, Segment, lines_of, segment, through
from bench.threat import ThreatModel

CHUNK = 1 << 22
"""Most float64 numbers of one layer that are worked on at once: 32 MB, which caches like."""


@dataclass(frozen=True)
class Region:
    """Where the image may be: a ball around each image, cut by the box [0, 1].

    Attributes:
        images: (n, C, H, W) in float64.
        eps, norm: of the ball; `linf` or `l2`.
    """

    images: Tensor
    eps: float
    norm: str

    def rows(self, index: Tensor) -> Region:
        return Region(self.images[index], self.eps, self.norm)

    def least(self, bound: Backward) -> Tensor:
        """The least value of a bound from below over each row's region, rounded down: (rows,)."""
        slack = ROUNDING * (self._size(bound) + bound.size)
        return self._least(bound.coefficients) + bound.below - slack

    def greatest(self, bound: Backward) -> Tensor:
        """The greatest value of a bound from above, rounded up: (rows,)."""
        slack = ROUNDING * (self._size(bound) + bound.size)
        return -self._least(-bound.coefficients) + bound.above + slack

    def _least(self, coefficients: Tensor) -> Tensor:
        A, x = coefficients.flatten(1), self.images.flatten(1)
        low, high = (x - self.eps).clamp(0, 1), (x + self.eps).clamp(0, 1)
        least = (A.clamp(min=0) * low + A.clamp(max=0) * high).sum(1)
        if self.norm == "l2":
            # Both the box around the ball and the ball itself hold the region.
            least = torch.maximum(least, (A * x).sum(1) - self.eps * A.norm(dim=1))
        return least

    def _size(self, bound: Backward) -> Tensor:
        A = bound.coefficients.detach().flatten(1)
        size = (A.abs() * (self.images.flatten(1) + self.eps)).sum(1)
        return size + self.eps * A.norm(dim=1) if self.norm == "l2" else size


class Crown:
    """Bounds of the margins of a ReLU network.

    Args:
        network: images (n, C, H, W) to logits (n, K), float64; affine but for its ReLUs.
        threat: linf or l2.
        num_classes: K.
    """

    def __init__(self, network: Network, threat: ThreatModel, num_classes: int) -> None:
        self._network = network
        self._threat = threat
        self._classes = num_classes
        self._segments: dict[int, Segment] = {}

    def margins(self, images: Tensor, labels: Tensor, *, steps: int = 0) -> Tensor:
        """A lower bound of z_y - max_{j != y} z_j over each image's region: float64 (n,).

        Args:
            images: (n, C, H, W) in [0, 1].
            labels: (n,).
            steps: of the ascent on the lower slopes of images that are not certified without
                (alpha-CROWN); 0 for plain CROWN.
        """
        region = Region(images.double(), self._threat.eps, self._threat.norm)
        layers = self._hidden(region)
        bounds = self._last(region, layers, labels)
        left = (bounds <= 0).any(1).nonzero().squeeze(1)
        if steps and layers and len(left):
            chosen = [lines.rows(left) for lines in layers]
            better = self._ascended(region.rows(left), chosen, labels[left], steps)
            bounds[left] = torch.maximum(bounds[left], better)
        return bounds.amin(1)

    def _hidden(self, region: Region, *, tight: bool = True) -> list[Lines]:
        """The lines of every ReLU, layer by layer, for each image."""
        x, n = region.images.flatten(1), len(region.images)
        low = {-1: (x - region.eps).clamp(0, 1)}
        high = {-1: (x + region.eps).clamp(0, 1)}
        layers: list[Lines] = []
        for number, inner in enumerate(self._shapes(region)):
            # Interval bounds tell most neurons that are never, or always, active.
            bounds = list(self._segment(region, number).interval(low, high))
            if tight and (number or region.norm == "l2"):
                self._tighten(region, layers, bounds)
            low[number], high[number] = (one.clamp(min=0) for one in bounds)
            least, greatest = (one.reshape(n, *inner) for one in bounds)
            layers.append(Lines.between(least, greatest))
        return layers

    def _shapes(self, region: Region) -> list[tuple[int, ...]]:
        """Of the input of each ReLU, without images."""
        inputs = relu_inputs(self._network, region.images[:1])[:-1]
        return [tuple(z.shape[1:]) for z in inputs]

    def _segment(self, region: Region, number: int) -> Segment:
        """The segment before a ReLU, computed once."""
        if number not in self._segments:
            shapes = self._shapes(region)[: number + 1]
            inputs = region.images[0].numel() + sum(torch.Size(s).numel() for s in shapes)
            shape = tuple(region.images.shape[1:])
            self._segments[number] = segment(self._network, shape, shapes, max(1, CHUNK // inputs))
        return self._segments[number]

    def _tighten(self, region: Region, layers: Sequence[Lines], bounds: list[Tensor]) -> None:
        """Replace the bounds (n, neurons) of unstable neurons by CROWN's, where those are
        tighter.
        """
        low, high = bounds
        shape = tuple(region.images.shape[1:])
        segments = [self._segment(region, k) for k in range(len(layers) + 1)]
        for lines in ([one.parallel() for one in layers], layers):
            both = lines is not layers
            for image in range(len(low)):
                ours = [lines_of(one, image) for one in lines]
                unstable = ((low[image] < 0) & (high[image] > 0)).nonzero().squeeze(1)
                for neurons in unstable.split(self._rows(region, layers)) if len(unstable) else ():
                    where = region.rows(torch.full_like(neurons, image))
                    bound = through(segments, ours, neurons, shape)
                    if both:
                        greatest = where.greatest(bound)
                    else:
                        greatest = -where.least(through(segments, ours, neurons, shape, sign=-1))
                    low[image, neurons] = torch.maximum(low[image, neurons], where.least(bound))
                    high[image, neurons] = torch.minimum(high[image, neurons], greatest)

    def _rows(self, region: Region, layers: Sequence[Lines]) -> int:
        """Rows of a bound that are worked on at once."""
        widths = [region.images[0].numel(), *(lines.lower[0].numel() for lines in layers)]
        return max(1, CHUNK // max(widths))

    def _backward(
        self, region: Region, layers: Sequence[Lines], aims: Tensor, *, graph: bool = False
    ) -> Backward:
        shape = tuple(region.images.shape[1:])
        return backward(self._network, shape, layers, aims, differentiable=graph)

    def _aims(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """e_y - e_j for each j != y: rows (n (K - 1), K), and the image of each row."""
        K = self._classes
        unit = torch.eye(K, dtype=torch.float64)
        image = torch.arange(len(labels)).repeat_interleave(K - 1)
        others = torch.stack([torch.tensor([j for j in range(K) if j != y]) for y in labels])
        return unit[labels[image]] - unit[others.flatten()], image

    def _last(self, region: Region, layers: Sequence[Lines], labels: Tensor) -> Tensor:
        """Bounds of z_y - z_j, (n, K - 1)."""
        aims, image = self._aims(labels)
        values = torch.empty(len(aims), dtype=torch.float64)
        for rows in torch.arange(len(aims)).split(self._rows(region, layers)):
            ours = [lines.rows(image[rows]) for lines in layers]
            bound = self._backward(region, ours, aims[rows])
            values[rows] = region.rows(image[rows]).least(bound)
        return values.reshape(len(labels), -1)

    def _ascended(
        self, region: Region, layers: Sequence[Lines], labels: Tensor, steps: int
    ) -> Tensor:
        """Bounds (n, K - 1) after ascent on the lower slopes of unstable neurons (alpha-CROWN), for
        each image and class of its own.
        """
        aims, image = self._aims(labels)
        best = torch.full((len(aims),), -torch.inf, dtype=torch.float64)
        # The graph of an ascent holds each layer several times.
        for rows in torch.arange(len(aims)).split(max(1, self._rows(region, layers) // 8)):
            ours = [lines.rows(image[rows]) for lines in layers]
            best[rows] = self._ascend(region.rows(image[rows]), ours, aims[rows], steps)
        return best.reshape(len(labels), -1)

    def _ascend(self, region: Region, layers: Sequence[Lines], aims: Tensor, steps: int) -> Tensor:
        slopes = [lines.lower.clone().requires_grad_(True) for lines in layers]
        free = [lines.shift > 0 for lines in layers]
        optimiser = torch.optim.Adam(slopes, lr=0.1, maximize=True)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.98)
        best = torch.full((len(aims),), -torch.inf, dtype=torch.float64)
        for step in range(steps + 1):
            ours = [
                Lines(torch.where(f, a, one.lower), one.upper, one.shift)
                for f, a, one in zip(free, slopes, layers, strict=True)
            ]
            bound = self._backward(region, ours, aims, graph=step < steps)
            values = region.least(bound)
            best = torch.maximum(best, values.detach())
            if step == steps or bool((best > 0).all()):
                break
            optimiser.zero_grad()
            grads = torch.autograd.grad(values.sum(), slopes, allow_unused=True)
            for slope, grad in zip(slopes, grads, strict=True):
                slope.grad = grad
            optimiser.step()
            decay.step()
            with torch.no_grad():
                for slope in slopes:
                    slope.clamp_(0, 1)
        return best
