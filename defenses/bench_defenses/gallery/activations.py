"""How a defense replaces the activations inside any classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bench.defense import Forward, Wrapper
from bench.errors import BadInput
from bench.noise import Noise

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS = frozenset(
    {F.relu, torch.relu, Tensor.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu}
)


class ActivationSwap(Wrapper):
    """A classifier each of whose activations goes through `activate`.

    Activations are replaced while the forward pass runs, so that modules (`nn.ReLU`) and functions
    (`F.relu`) are treated alike; in-place ones act on a tensor of their own. Their place in the
    order of the pass names them. Subclasses write `activate`.

    Raises `BadInput` in the forward pass where it meets no activation.
    """

    gradients: tuple[str, ...] = ("full",)

    def activate(self, inputs: Tensor, original: Activation, noise: Noise, gradient: str) -> Tensor:
        """What takes the place of `original(inputs)`; inputs (n, ...), `noise` is that of this
        activation.
        """
        raise NotImplementedError

    def forward_pass(self, gradient: str = "full", view: str = "logits") -> Forward:
        """The gradients in `gradients`; one that the classifier offers too reaches through
        to it.
        """
        inner = self.inner(gradient, view)

        def run(images: Tensor, noise: Noise) -> Tensor:
            def replace(inputs: Tensor, original: Activation, place: int) -> Tensor:
                own = noise.at("activation").at(str(place))
                return self.activate(inputs, original, own, gradient)

            with _Replaced(replace) as replaced:
                output = inner(images, noise.at("classifier"))
            if not replaced.count:
                raise BadInput(
                    "no activation was met in the classifier's forward pass: use a classifier with "
                    "ReLU or the like"
                )
            return output

        return run


class _Replaced(TorchFunctionMode):
    """Inside the block, every call of an activation goes to `replace(inputs, original, place)`."""

    def __init__(self, replace: Callable[[Tensor, Activation, int], Tensor]) -> None:
        super().__init__()
        self.replace = replace
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func not in _ACTIVATIONS:
            return func(*args, **options)
        options.pop("inplace", None)
        inputs, *rest = args or (options.pop("input"),)
        self.count += 1
        return self.replace(inputs, lambda x: func(x, *rest, **options), self.count - 1)
