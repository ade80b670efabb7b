"""The network inside a defended classifier, as a function in float64 that bounds can be run
through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.certify.lines import Network, is_piecewise_affine, relu_inputs
from bench.defense import DefendedClassifier
from bench.errors import BadInput, one_line
from bench.models.classifier import Classifier
from bench.models.foreign import copied

WIDEST = 1 << 27
"""Entries of the largest matrix between two layers, zeros and all: rows of a bound fill up on their
way to the image, and beyond this it takes minutes an image where most neurons are unstable.
"""

_MADE_OF = (
    "CROWN bounds networks of convolutions, linear layers, BatchNorm, ReLU, average pooling and "
    "residual adds"
)


def certifiable(defended: DefendedClassifier, shape: tuple[int, ...]) -> Network:
    """Images (n, C, H, W) to logits (n, K), both float64.

    Args:
        defended: the defense as it was built.
        shape: (C, H, W) of its images.

    Raises:
        BadInput: where it is more than a network, a network of other layers, or too wide.
    """
    if not isinstance(defended, Classifier) or defended.stochastic:
        raise BadInput(
            f"{type(defended).__name__} cannot be certified: {_MADE_OF}, not what stands around one"
        )
    inside: Any = copied(defended).cpu().double()
    name = type(defended.network).__name__

    def network(images: Tensor) -> Tensor:
        if inside.normalised:
            images = (images - inside.mean) / inside.std
        logits: Tensor = inside.network(images)
        return logits

    try:
        reached = relu_inputs(network, torch.zeros(1, *shape, dtype=torch.float64))
        fits = all(z.dtype == torch.float64 for z in reached)
        fits = fits and is_piecewise_affine(network, shape)
    except Exception as error:
        raise BadInput(f"{name} cannot be certified ({one_line(error)}): {_MADE_OF}") from error
    if not fits:
        raise BadInput(f"{name} cannot be certified: {_MADE_OF}, in numbers of any precision")
    widths = [torch.Size(shape).numel(), *(z[0].numel() for z in reached[:-1])]
    entries = max((one * max(widths[:k]) for k, one in enumerate(widths) if k), default=0)
    if entries > WIDEST:
        raise BadInput(
            f"{name} is too wide to be certified here: two of its layers span a matrix of "
            f"{entries / 1e6:.0f} million entries, and {WIDEST / 1e6:.0f} are the most"
        )
    return network
