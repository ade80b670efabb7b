"""Batch normalisation folded into the convolution before it: the same function up to rounding, in
two thirds of the time.

In evaluation mode a batch normalisation is y = (x - mean) / sqrt(var + eps) * weight + bias,
channel by channel, so a convolution's weights and bias can hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _identity(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class _Pair:
    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    own: tuple[nn.Parameter | None, nn.Parameter | None]
    folded: tuple[nn.Parameter, nn.Parameter]


class Folding:
    """Pairs of a convolution and the batch normalisation that reads it, in a module that stays as
    it is but for the blocks that ask otherwise.

        with folding:
            logits = module(images)

    What is folded is the module itself and no copy of it, so that whatever else it holds or
    remembers is the same inside the block and outside. Gradients of what was computed inside may
    be taken outside.

    Args:
        module: in evaluation mode.
        pairs: names of convolution and normalisation, as `find_pairs` tells them.
        layout: of the kernels. What a convolution gives out lies likewise, and so on through the
            module, which a module that takes `view` of it may refuse.
    """

    rounding = 0.0
    """Beyond that of other kernels."""

    def __init__(
        self,
        module: nn.Module,
        pairs: Sequence[tuple[str, str]],
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        parts = dict(module.named_modules())
        self._pairs = [_pair(parts[one], parts[other], layout) for one, other in pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    def __enter__(self) -> None:
        for pair in self._pairs:
            _set(pair.convolution, pair.folded)
            # On the instance, before the class's own.
            vars(pair.norm)["forward"] = _identity

    def __exit__(self, *_: object) -> None:
        for pair in self._pairs:
            _set(pair.convolution, pair.own)
            del vars(pair.norm)["forward"]


def _set(convolution: nn.Conv2d, weights: tuple[nn.Parameter | None, nn.Parameter | None]) -> None:
    convolution._parameters["weight"], convolution._parameters["bias"] = weights


def _pair(convolution: nn.Module, norm: nn.Module, layout: torch.memory_format) -> _Pair:
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    weight = convolution.weight.detach()
    # In float64, rounded once.
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    if convolution.bias is not None:
        shift = shift + convolution.bias.detach().double() * scale
    kernel = (weight.double() * scale.reshape(-1, 1, 1, 1)).to(weight.dtype)
    return _Pair(
        convolution,
        norm,
        (convolution._parameters["weight"], convolution._parameters["bias"]),
        (
            nn.Parameter(laid(kernel, layout), requires_grad=False),
            nn.Parameter(shift.to(weight.dtype), requires_grad=False),
        ),
    )


def laid(kernel: Tensor, layout: torch.memory_format) -> Tensor:
    """The kernel in this layout, told by its strides even where it has one channel: there
    `contiguous` returns what is there, and the convolution would go by the images' layout.
    """
    return torch.empty_like(kernel, memory_format=layout).copy_(kernel)


def candidates(module: nn.Module) -> bool:
    """Whether a module holds any convolution and batch normalisation that might be a pair."""
    parts = list(module.modules())
    return any(map(_is_convolution, parts)) and any(map(_is_norm, parts))


def find_pairs(module: nn.Module, run: Callable[[], object]) -> list[tuple[str, str]]:
    """The names of all pairs in a module: each time that `run` calls the convolution, the
    normalisation and it alone is called with what came out.

    That nothing else reads what came out does not show here: compare the outputs.

    Args:
        module: in evaluation mode.
        run: calls the module.
    """
    watch = _Watch()
    handles = []
    try:
        for part in module.modules():
            if _is_convolution(part):
                handles.append(part.register_forward_hook(watch.convolved))
            elif _is_norm(part):
                handles.append(part.register_forward_pre_hook(watch.normalised))
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    names = {part: name for name, part in module.named_modules()}
    pairs = watch.pairs()
    if not all(one in names and other in names for one, other in pairs):
        # A copy that was made inside the forward pass, with our hooks on it.
        return []
    return [(names[one], names[other]) for one, other in pairs]


class _Watch:
    """What went into normalisations and came out of convolutions."""

    def __init__(self) -> None:
        # Kept, so that no later tensor gets the number of one that is gone.
        self._made: dict[int, tuple[nn.Module, Tensor, int]] = {}
        self._calls: dict[nn.Module, int] = {}
        self._read: dict[nn.Module, list[nn.Module | None]] = {}
        self._readers: dict[nn.Module | None, list[nn.Module]] = {}

    def convolved(self, part: nn.Module, _: object, output: Tensor) -> None:
        self._calls[part] = self._calls.get(part, 0) + 1
        self._made[id(output)] = (part, output, output._version)

    def normalised(self, part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        source: nn.Module | None = None
        if len(inputs) == 1 and id(inputs[0]) in self._made:
            made, output, version = self._made[id(inputs[0])]
            # An operation in place between the two would leave the same object.
            source = made if output._version == version else None
        self._read.setdefault(part, []).append(source)
        self._readers.setdefault(source, []).append(part)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        found = []
        for norm, sources in self._read.items():
            one = sources[0]
            alone = all(source is one for source in sources) and self._readers[one] == [
                norm for _ in sources
            ]
            if one is not None and alone and self._calls[one] == len(sources):
                found.append((one, norm))
        return found


def _is_convolution(part: nn.Module) -> bool:
    # Not a subclass: it may compute anything; a parametrisation makes one.
    return type(part) is nn.Conv2d and is_plain(part)


def _is_norm(part: nn.Module) -> bool:
    return (
        type(part) is nn.BatchNorm2d
        and is_plain(part)
        and not part.training
        and part.running_mean is not None
        and part.running_var is not None
    )


def is_plain(part: nn.Module) -> bool:
    """Float32, and nothing that somebody hung on it."""
    tensors = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    return (
        "forward" not in vars(part)
        and not any(vars(part).get(kind) for kind in _HOOKS)
        and all(one.dtype == torch.float32 for one in tensors if one.is_floating_point())
    )
