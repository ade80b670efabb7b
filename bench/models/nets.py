"""Networks for small images that the suite can rebuild from a name or a list of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import BadInput
from bench.models.resnet import Bottleneck, CifarResNet, WideResNet, initialise
from bench.noise import isolated
from bench.spec import nearest

_GRID = 4
"""Places a side that `FlatCNN` distinguishes."""

Architecture = str | Sequence[Sequence[Any]]
"""A name in `ARCHITECTURES`, or a list of layers as `LayerList` takes it."""


class SmallCNN(nn.Module):
    """Four 3 x 3 convolutions with batch normalisation and a global average; any image size.

    33,338 parameters for one channel and ten classes.

    Args:
        num_classes: number of classes K.
        channels: channels of the image.
    """

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, 16, 1),
            *_convolution(16, 32, 2),
            *_convolution(32, 32, 1),
            *_convolution(32, 64, 2),
        )
        self.linear = nn.Linear(64, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to the averaged last feature map (n, 64)."""
        maps: Tensor = self.body(x)
        return maps.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to logits (n, K)."""
        logits: Tensor = self.linear(self.features(x))
        return logits


def _convolution(width_in: int, width: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()


class FlatCNN(nn.Module):
    """Three strided 3 x 3 convolutions with batch normalisation, then a hidden layer that sees
    where something is.

    47,610 parameters for one channel and ten classes. Images of 25 to 32 pixels come to 4 x 4 maps,
    others are averaged to them.

    Args:
        num_classes: number of classes K.
        channels: channels of the image.
    """

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, 16, 2), *_convolution(16, 32, 2), *_convolution(32, 32, 2)
        )
        self.hidden = nn.Linear(32 * _GRID**2, 64)
        self.linear = nn.Linear(64, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to the hidden layer (n, 64)."""
        maps: Tensor = self.body(x)
        if maps.shape[2:] != (_GRID, _GRID):
            maps = F.adaptive_avg_pool2d(maps, _GRID)
        return F.relu(self.hidden(maps.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to logits (n, K)."""
        logits: Tensor = self.linear(self.features(x))
        return logits


class LayerList(nn.Sequential):
    """A network from a list of layers.

    | layer | |
    |---|---|
    | `["conv", in, out, kernel, stride, padding]` | convolution |
    | `["lin", in, out]` | linear layer |
    | `["bn", channels]` | batch normalisation of maps |
    | `["relu"]`, `["flat"]` | ReLU; maps to a vector |
    | `["pool", kernel, stride, padding]` | max pooling; the stride is the kernel by default |
    | `["avgpool", kernel, stride, padding]` | average pooling; `["avgpool"]` over the whole map |
    | `["add", place]` | adds the output of the layer at that place in the list, from 0 |

    Keys of the state are `0.weight`, `0.bias` and so on, by place in the list. Raises `BadInput`
    for a layer that cannot be built, or a last layer that is not linear.
    """

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    def __init__(self, layers: Sequence[Sequence[Any]]) -> None:
        super().__init__(*(_layer(place, tuple(layer)) for place, layer in enumerate(layers)))
        if not len(self) or not isinstance(self[-1], nn.Linear):
            raise BadInput(
                'the list of layers does not end in a linear layer: end it with ["lin", in, '
                "classes]"
            )

    def features(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to the input of the last layer (n, d)."""
        return self._run(x, len(self) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to logits (n, K)."""
        return self._run(x, len(self))

    def _run(self, x: Tensor, count: int) -> Tensor:
        layers = list(self)[:count]
        wanted = {layer.place for layer in layers if isinstance(layer, _Add)}
        kept: dict[int, Tensor] = {}
        for place, layer in enumerate(layers):
            x = x + kept[layer.place] if isinstance(layer, _Add) else layer(x)
            if place in wanted:
                kept[place] = x
        return x


class _Add(nn.Module):
    """The sum with the output of the layer at `place`; a residual connection."""

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place


class _GlobalAverage(nn.AdaptiveAvgPool2d):
    """Maps (n, C, H, W) to (n, C, 1, 1)."""

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    def __init__(self) -> None:
        super().__init__(1)


# Each kind of layer with the smallest value that each of its numbers may take, and how many of them
# must be given.
_LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], int]] = {
    "conv": (nn.Conv2d, (1, 1, 1, 1, 0), 5),
    "relu": (nn.ReLU, (), 0),
    "flat": (nn.Flatten, (), 0),
    "lin": (nn.Linear, (1, 1), 2),
    "bn": (nn.BatchNorm2d, (1,), 1),
    "pool": (nn.MaxPool2d, (1, 1, 0), 1),
    "avgpool": (
        lambda *numbers: nn.AvgPool2d(*numbers) if numbers else _GlobalAverage(),
        (1, 1, 0),
        0,
    ),
    "add": (_Add, (0,), 1),
}


def _layer(place: int, layer: tuple[Any, ...]) -> nn.Module:
    kind, *numbers = layer or ("",)
    if kind not in _LAYERS:
        raise BadInput(
            f"layer {place} of the architecture is of unknown kind "
            f"{kind!r}.{nearest(str(kind), _LAYERS)}"
        )
    make, lowest, least = _LAYERS[kind]
    fits = least <= len(numbers) <= len(lowest) and all(
        type(number) is int and number >= low for number, low in zip(numbers, lowest, strict=False)
    )
    if not fits:
        sizes = str(least) if least == len(lowest) else f"{least} to {len(lowest)}"
        raise BadInput(
            f"layer {place} of the architecture, {list(layer)}, is wrong: {kind} takes "
            f"{sizes} sizes"
        )
    if kind == "add" and numbers[0] >= place:
        raise BadInput(
            f"layer {place} of the architecture adds layer {numbers[0]}, which comes no earlier: "
            "name one before it"
        )
    return make(*numbers)


Builder = Callable[[int, int], nn.Module]


def _cifar(blocks: int, projection: bool) -> Builder:
    return lambda num_classes, channels: CifarResNet(
        (blocks,) * 3, num_classes, channels, projection=projection
    )


def _full_width(counts: tuple[int, ...], bottleneck: bool) -> Builder:
    block = {"block": Bottleneck} if bottleneck else {}
    return lambda num_classes, channels: CifarResNet(
        counts, num_classes, channels, width=64, projection=True, **block
    )


def _wide(depth: int, factor: int) -> Builder:
    return lambda num_classes, channels: WideResNet(depth, factor, num_classes, channels)


_CIFAR_BLOCKS = (1, 2, 3, 4, 5, 7, 9, 18)

ARCHITECTURES: dict[str, Builder] = {
    # He et al. 2016, section 4.2: 6 n + 2 layers for n blocks a stage.
    **{f"resnet{6 * n + 2}": _cifar(n, projection=False) for n in _CIFAR_BLOCKS},
    **{f"resnet{6 * n + 2}-projection": _cifar(n, projection=True) for n in _CIFAR_BLOCKS},
    "resnet18": _full_width((2, 2, 2, 2), bottleneck=False),
    "resnet50": _full_width((3, 4, 6, 3), bottleneck=True),
    "wrn16-4": _wide(16, 4),
    "wrn16-10": _wide(16, 10),
    "wrn28-10": _wide(28, 10),
    "wrn34-10": _wide(34, 10),
    "wrn70-16": _wide(70, 16),
    "wrn40-2": _wide(40, 2),
    "wrn40-8": _wide(40, 8),
    "cnn": SmallCNN,
    "flat": FlatCNN,
}
"""Names to builders that take (num_classes, channels)."""


def build(arch: Architecture, num_classes: int, channels: int, seed: int = 0) -> nn.Module:
    """A network with fresh weights that depend on `seed` only; the global generators stay as they
    are.

    Raises `BadInput` for an unknown name, or a list of layers that does not fit the channels or
    classes.
    """
    with isolated(seed):
        if not isinstance(arch, str):
            return _fitting(LayerList(arch), num_classes, channels)
        if arch not in ARCHITECTURES:
            raise BadInput(f"unknown architecture {arch!r}.{nearest(arch, ARCHITECTURES)}")
        return ARCHITECTURES[arch](num_classes, channels)


def _fitting(network: LayerList, num_classes: int, channels: int) -> LayerList:
    first = next(layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear))
    if isinstance(first, nn.Conv2d) and first.in_channels != channels:
        raise BadInput(wrong_channels(first.in_channels, channels))
    last = network[-1]
    if isinstance(last, nn.Linear) and last.out_features != num_classes:
        raise BadInput(wrong_classes(last.out_features, num_classes))
    return network


def wrong_channels(got: int, expected: int) -> str:
    """The message for a network made for other images."""
    return (
        f"the network takes {got} channels, but the images have {expected}: give a network made "
        "for this data set"
    )


def wrong_classes(got: int, expected: int) -> str:
    """The message for a network made for another number of classes."""
    more = ", or say that the data set lacks some (npz:FILE,classes=N)" if got > expected else ""
    return (
        f"the network has {got} classes, but the data set has {expected}: give a network made "
        f"for this data set{more}"
    )
