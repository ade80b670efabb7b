"""A module that computes in bfloat16 for a while: products of matrices and convolutions, with their
sums in float32.

bfloat16 has float32's range and three digits of its precision, so that no gradient vanishes in it.
A processor that has units for it takes half the time; GPUs were not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from bench.models.folding import Folding, is_plain, laid

Weights = tuple[nn.Parameter, nn.Parameter | None]


class Narrow:
    """A module whose convolutions and linear layers compute in bfloat16 inside a block.

        with narrow:
            logits = module(images)

    The module is float32 outside. Gradients of what was computed inside may be taken outside.

    Args:
        module: in evaluation mode.
        device_type: `cpu` or `cuda`.
        folding: of the module, which holds inside the block as well; None for none.
        layout: of the kernels, as for `Folding`.
    """

    rounding = torch.finfo(torch.bfloat16).eps
    """Of the largest logit."""

    def __init__(
        self,
        module: nn.Module,
        device_type: str,
        folding: Folding | None = None,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self._device_type, self._folding = device_type, folding
        self._open = ExitStack()
        with self._folded():
            layers = [part for part in module.modules() if _is_layer(part)]
            self._layers = [(part, _rounded(part, layout)) for part in layers]

    def __enter__(self) -> None:
        with ExitStack() as opened:
            opened.enter_context(self._folded())
            opened.enter_context(self._swapped())
            opened.enter_context(torch.autocast(self._device_type, torch.bfloat16))
            self._open = opened.pop_all()

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @contextmanager
    def _folded(self) -> Iterator[None]:
        if self._folding is None:
            yield
            return
        with self._folding:
            yield

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        """The rounded weights in the layers' places; rounding them at each pass takes as long as a
        pass of a few images.
        """
        own = [(part, dict(part._parameters)) for part, _ in self._layers]
        try:
            for part, (weight, bias) in self._layers:
                part._parameters.update(weight=weight, bias=bias)
            yield
        finally:
            for part, parameters in own:
                part._parameters.update(parameters)


def _is_layer(part: nn.Module) -> bool:
    # Not a subclass: it may compute anything.
    return type(part) in (nn.Conv2d, nn.Linear) and is_plain(part)


def _rounded(part: nn.Module, layout: torch.memory_format) -> Weights:
    weight, bias = part._parameters["weight"], part._parameters["bias"]
    assert weight is not None
    narrow = weight.detach().to(torch.bfloat16)
    if narrow.dim() == 4:
        narrow = laid(narrow, layout)
    return _constant(narrow), None if bias is None else _constant(bias.detach().to(torch.bfloat16))


def _constant(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
