"""The affine maps between the ReLUs as matrices, mostly sparse: bounds of hidden neurons.

A neuron behind a convolution sees a patch of what comes before. Its row of a bound is nearly empty
then, and all its zeros would be carried through every layer if bounds ran through the network
itself, as `bench.certify.lines.backward` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array, issparse
from torch import Tensor

from bench.certify.lines import Backward, Lines, Network, Reached, replaced

ROUNDING = 1e-11
"""Times the sum of absolute values: more than sums of a million terms err in float64."""

_FULL = 0.2
"""Share of entries that are not zero above which a matrix is faster as an array."""

Floats = npt.NDArray[np.float64]

Matrix = Any
"""A `csr_array`, or an array where few entries are zero: (rows, inputs) in float64."""


@dataclass(frozen=True)
class Segment:
    """The affine map from the image and the outputs of earlier ReLUs to the input of one ReLU.

    Attributes:
        matrices: by source, -1 for the image, else the ReLU's number: (neurons, inputs).
        constant: (neurons,).
    """

    matrices: dict[int, Matrix]
    constant: Floats

    def interval(self, low: dict[int, Tensor], high: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Bounds of the neurons, each (n, neurons), from those of the sources, each (n, inputs);
        rounded outwards.
        """
        least = greatest = self.constant[:, None]
        size = np.abs(self.constant)[:, None]
        for source, matrix in self.matrices.items():
            down, up = low[source].numpy().T, high[source].numpy().T
            positive, negative = _clipped(matrix, 0, None), _clipped(matrix, None, 0)
            least = least + positive @ down + negative @ up
            greatest = greatest + positive @ up + negative @ down
            size = size + abs(matrix) @ np.maximum(np.abs(down), np.abs(up))
        slack = ROUNDING * size
        return _tensor((least - slack).T), _tensor((greatest + slack).T)


class RowLines(NamedTuple):
    """The lines of one layer's neurons for one image; see `Lines`."""

    lower: Floats
    upper: Floats
    shift: Floats


def lines_of(lines: Lines, row: int) -> RowLines:
    """The lines of one row."""
    parts = (lines.lower, lines.upper, lines.shift)
    return RowLines(*(one[row].detach().flatten().numpy() for one in parts))


def segment(
    network: Network, shape: tuple[int, ...], shapes: Sequence[tuple[int, ...]], chunk: int
) -> Segment:
    """The segment before the ReLU that follows those of these shapes.

    Args:
        network: in float64.
        shape: (C, H, W) of an image.
        shapes: of the inputs of the ReLUs before, and of this one at last.
        chunk: rows of the matrices that are worked on at once.
    """
    target, neurons = len(shapes) - 1, torch.Size(shapes[-1]).numel()
    matrices: dict[int, list[csr_array]] = {}
    constants = []
    for rows in torch.arange(neurons).split(chunk):
        leaves = {-1: torch.zeros(len(rows), *shape, dtype=torch.float64, requires_grad=True)}

        def replace(number: int, z: Tensor, leaves: dict[int, Tensor] = leaves) -> Tensor:
            if number == target:
                raise Reached(z)
            leaves[number] = torch.zeros_like(z).requires_grad_(True)
            return leaves[number]

        z = None
        with torch.enable_grad(), replaced(replace):
            try:
                network(leaves[-1])
            except Reached as reached:
                z = reached.z
        assert z is not None
        aims = torch.zeros(len(rows), neurons, dtype=torch.float64)
        aims[torch.arange(len(rows)), rows] = 1
        slopes = torch.autograd.grad(
            z, list(leaves.values()), aims.reshape(z.shape), allow_unused=True
        )
        for source, slope in zip(leaves, slopes, strict=True):
            if slope is not None:
                matrices.setdefault(source, []).append(csr_array(slope.flatten(1).numpy()))
        constants.append(z.detach().flatten(1)[0, rows].numpy())
    whole = {source: _stacked(parts) for source, parts in matrices.items()}
    return Segment(whole, np.concatenate(constants))


def through(
    segments: Sequence[Segment],
    lines: Sequence[RowLines],
    neurons: Tensor,
    shape: tuple[int, ...],
    sign: int = 1,
) -> Backward:
    """The lower bound of the inputs of these neurons of one ReLU, times a sign, for one image:
    what `bench.certify.lines.backward` gives for as many rows.

    Args:
        segments: of the ReLUs in order, that of the neurons at last.
        lines: of the ReLUs before that, for the image.
        neurons: (rows,) of the last segment.
        shape: (C, H, W) of an image.
        sign: 1 or -1.
    """
    chosen, last = neurons.numpy(), segments[-1]
    below = above = sign * last.constant[chosen]
    size = np.abs(below)
    slopes = {source: sign * matrix[chosen] for source, matrix in last.matrices.items()}
    for number in range(len(lines) - 1, -1, -1):
        slope = slopes.pop(number, None)
        if slope is None:
            continue
        before = segments[number]
        onto, negative, positive = _onto(slope, lines[number])
        shared = onto @ before.constant
        below, above = below + shared + negative, above + shared + positive
        size = size + abs(onto) @ np.abs(before.constant) - negative + positive
        for source, matrix in before.matrices.items():
            further = onto @ matrix
            earlier = slopes.get(source)
            slopes[source] = _thick(further if earlier is None else earlier + further)
    found = slopes.get(-1)
    inputs = torch.Size(shape).numel()
    coefficients = np.zeros((len(chosen), inputs)) if found is None else _array(found)
    tensors = (_tensor(one) for one in (below, above, size))
    return Backward(_tensor(coefficients).reshape(-1, *shape), *tensors)


def _onto(slope: Matrix, lines: RowLines) -> tuple[Matrix, Floats, Floats]:
    """Coefficients of the ReLU's outputs onto its lines, as in `bench.certify.lines`, and the
    constants of its negative and of its positive ones.
    """
    lower, upper, shift = lines
    if not issparse(slope):
        negative, positive = np.minimum(slope, 0), np.maximum(slope, 0)
        return positive * lower + negative * upper, negative @ shift, positive @ shift
    data, at = slope.data, slope.indices
    onto = _like(slope, data * np.where(data < 0, upper[at], lower[at]))
    return onto, _clipped(slope, None, 0) @ shift, _clipped(slope, 0, None) @ shift


def _like(matrix: Any, data: Floats) -> Any:
    return csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _clipped(matrix: Matrix, low: float | None, high: float | None) -> Matrix:
    """Entries between these."""
    if issparse(matrix):
        return _like(matrix, np.clip(matrix.data, low, high))
    return np.clip(matrix, low, high)


def _stacked(parts: Sequence[Any]) -> Matrix:
    from scipy.sparse import vstack

    return _thick(csr_array(vstack(parts)) if len(parts) > 1 else parts[0])


def _thick(matrix: Matrix) -> Matrix:
    """An array where that is faster."""
    full = issparse(matrix) and matrix.nnz > _FULL * matrix.shape[0] * matrix.shape[1]
    return matrix.toarray() if full else matrix


def _array(matrix: Matrix) -> Floats:
    return np.asarray(matrix.toarray() if issparse(matrix) else matrix)


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
