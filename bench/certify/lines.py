"""A ReLU network between two lines a neuron: how bounds run backwards through it.

Everything but the ReLUs is affine, and autograd's backward pass through an affine map multiplies
by its matrix. So each ReLU is replaced by a function with forward value 0, which leaves the affine
constant of whatever follows it, and whose backward pass puts the coefficients on the lower or the
upper line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Network = Callable[[Tensor], Tensor]
"""Images (n, C, H, W) to logits (n, K)."""

_RELUS = {torch.relu, torch.relu_, F.relu, F.relu_, Tensor.relu, Tensor.relu_}


@dataclass(frozen=True)
class Lines:
    """The two lines that enclose each ReLU of one layer for a batch of rows.

    Attributes:
        lower: slope of the line below, through 0, in [0, 1]: (rows, *neurons).
        upper: slope of the line above.
        shift: the line above is upper * z + shift.
    """

    lower: Tensor
    upper: Tensor
    shift: Tensor

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> Lines:
        """From bounds of the neurons' inputs (Zhang et al. 2018, arXiv 1811.00866, section 3.3).

        Unstable ones (low < 0 < high) get the chord above, s = high / (high - low), shift -s low,
        and below the identity where high > -low, else 0.
        """
        active, dead = (low >= 0).to(low.dtype), high <= 0
        unstable = ~dead & (low < 0)
        chord = torch.where(unstable, high / (high - low).clamp(min=1e-300), active)
        return cls(
            torch.where(unstable, (high > -low).to(low.dtype), active),
            chord,
            torch.where(unstable, -chord * low, torch.zeros_like(low)),
        )

    def parallel(self) -> Lines:
        """With the line below parallel to the one above (Wong and Kolter 2018, arXiv 1711.00851):
        looser, but one backward pass then gives bounds from both sides.
        """
        return Lines(self.upper, self.upper, self.shift)

    def rows(self, index: Tensor) -> Lines:
        """The lines of these rows."""
        return Lines(self.lower[index], self.upper[index], self.shift[index])


class _Sink:
    """Collects the constants of a bound, those of the bound from the other side, and the size of
    what was summed.
    """

    def __init__(self, rows: int) -> None:
        self.below = self.above = self.size = torch.zeros(rows, dtype=torch.float64)

    def add(self, affine: Tensor, below: Tensor, above: Tensor) -> None:
        """Terms by neuron, (rows, *neurons): what both sides share, and what each adds."""
        shared = affine.flatten(1).sum(1)
        self.below = self.below + shared + below.flatten(1).sum(1)
        self.above = self.above + shared + above.flatten(1).sum(1)
        for terms in (affine, below, above):
            self.size = self.size + terms.detach().abs().flatten(1).sum(1)


class _Line(torch.autograd.Function):
    """Forward 0; backward onto the lines, for a bound from below.

    A coefficient A of the neuron's output becomes A+ lower + A- upper of its input, with the
    constant A- shift; and what the input's own affine constant c adds.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, lower: Tensor, upper: Tensor, shift: Tensor, sink: _Sink
    ) -> Tensor:
        ctx.save_for_backward(z, lower, upper, shift)
        ctx.sink = sink
        return torch.zeros_like(z)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None, None]:
        z, lower, upper, shift = ctx.saved_tensors
        negative, positive = slope.clamp(max=0), slope.clamp(min=0)
        onto = positive * lower + negative * upper
        ctx.sink.add(onto * z.detach(), negative * shift, positive * shift)
        return onto, None, None, None, None


class Reached(Exception):
    """The ReLU was reached at which a pass is to stop."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z


class _Replaced(TorchFunctionMode):
    """Inside, the ReLUs of a network are replaced, in the order in which they are called."""

    def __init__(self, replace: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self._replace = replace
        self._count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in _RELUS:
            return func(*args, **(kwargs or {}))
        z = args[0] if args else (kwargs or {})["input"]
        self._count += 1
        return self._replace(self._count - 1, z)


@contextmanager
def replaced(replace: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Inside, `replace(number, input)` stands for the network's ReLUs, counted from 0."""
    with _Replaced(replace):
        yield


def relu_inputs(network: Network, images: Tensor) -> list[Tensor]:
    """What goes into each ReLU, in order, and the logits at last."""
    seen: list[Tensor] = []

    def watch(_: int, z: Tensor) -> Tensor:
        seen.append(z.clone())
        return z.clamp(min=0)

    with torch.no_grad(), replaced(watch):
        output = network(images)
    return [*seen, output]


def is_piecewise_affine(network: Network, shape: tuple[int, ...]) -> bool:
    """Whether the network is affine but for its ReLUs, as far as a few random inputs tell:
    f(x + y) - f(x) - f(y) + f(0) = 0 with the ReLUs as the identity.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    with torch.no_grad(), replaced(lambda _, z: z):
        outputs = [network(one) for one in (x + y, x, y, torch.zeros_like(x))]
    gap = (outputs[0] - outputs[1] - outputs[2] + outputs[3]).abs().amax()
    return bool(gap <= 1e-9 * (1 + torch.stack(outputs).abs().amax()))


@dataclass(frozen=True)
class Backward:
    """Bounds as functions of the image: coefficients . x + constant, for each row.

    Attributes:
        coefficients: (rows, C, H, W).
        below: constant of the bound from below, (rows,).
        above: constant of a bound from above, where all lines are parallel, (rows,).
        size: sum of the absolute values that were added up for the constants, (rows,).
    """

    coefficients: Tensor
    below: Tensor
    above: Tensor
    size: Tensor


def backward(
    network: Network,
    shape: tuple[int, ...],
    lines: Sequence[Lines],
    aims: Tensor,
    *,
    differentiable: bool = False,
) -> Backward:
    """The lower bound of aims . (input of the ReLU that follows the given lines, or the logits).

    Args:
        network: in float64.
        shape: (C, H, W) of an image.
        lines: of the ReLUs before the target, in order, each for as many rows as `aims` has.
        aims: coefficients of the target, (rows, *neurons) in float64.
        differentiable: keep the graph, so that the bound can be ascended in the lower slopes.
    """
    sink, target = _Sink(len(aims)), len(lines)

    def replace(number: int, z: Tensor) -> Tensor:
        if number == target:
            raise Reached(z)
        one = lines[number]
        result: Tensor = _Line.apply(z, one.lower, one.upper, one.shift, sink)
        return result

    leaf = torch.zeros(len(aims), *shape, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        try:
            with replaced(replace):
                z = network(leaf)
        except Reached as reached:
            z = reached.z
        none = torch.zeros(len(aims), 1, dtype=torch.float64)
        sink.add(aims * z.detach(), none, none)
        (slope,) = torch.autograd.grad(
            z, leaf, aims, create_graph=differentiable, allow_unused=True
        )
    coefficients = torch.zeros_like(leaf) if slope is None else slope
    return Backward(coefficients, sink.below, sink.above, sink.size)
