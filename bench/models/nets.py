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
    """A plain network from a list of layers.

    A layer is `["conv", in, out, kernel, stride, padding]`, `["relu"]`, `["flat"]` or `["lin", in,
    out]`. Keys of the state are `0.weight`, `0.bias` and so on, by place in the list. Raises
    `BadInput` for a layer that cannot be built, or a last layer that is not linear.
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
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


# Each kind of layer with the smallest value that each of its numbers may take.
_LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "conv": (nn.Conv2d, (1, 1, 1, 1, 0)),
    "relu": (nn.ReLU, ()),
    "flat": (nn.Flatten, ()),
    "lin": (nn.Linear, (1, 1)),
}


def _layer(place: int, layer: tuple[Any, ...]) -> nn.Module:
    kind, *numbers = layer or ("",)
    if kind not in _LAYERS:
        raise BadInput(
            f"layer {place} of the architecture is of unknown kind "
            f"{kind!r}.{nearest(str(kind), _LAYERS)}"
        )
    make, lowest = _LAYERS[kind]
    fits = len(numbers) == len(lowest) and all(
        type(number) is int and number >= low for number, low in zip(numbers, lowest, strict=True)
    )
    if not fits:
        raise BadInput(
            f"layer {place} of the architecture, {list(layer)}, is wrong: {kind} takes "
            f"{len(lowest)} sizes"
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


ARCHITECTURES: dict[str, Builder] = {
    "resnet20": _cifar(3, projection=False),
    "resnet20-projection": _cifar(3, projection=True),
    "resnet56": _cifar(9, projection=False),
    "resnet56-projection": _cifar(9, projection=True),
    "resnet110-projection": _cifar(18, projection=True),
    "resnet18": _full_width((2, 2, 2, 2), bottleneck=False),
    "resnet50": _full_width((3, 4, 6, 3), bottleneck=True),
    "wrn16-4": _wide(16, 4),
    "wrn16-10": _wide(16, 10),
    "wrn28-10": _wide(28, 10),
    "wrn34-10": _wide(34, 10),
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
