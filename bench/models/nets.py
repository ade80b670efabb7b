"""Small networks that the suite can rebuild from a name or a list of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import BadInput
from bench.noise import isolated
from bench.spec import nearest

Architecture = str | Sequence[Sequence[Any]]
"""A name in `ARCHITECTURES`, or a list of layers as `LayerList` takes it."""


class _Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, width_in: int, width: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if width != width_in and projection:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        elif width != width_in:
            self.shortcut = _PaddedShortcut((width - width_in) // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class _PaddedShortcut(nn.Module):
    """Every second pixel, zeros for the new channels, no parameters: option A of He et al. 2016, section 3.3."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class CifarResNet(nn.Module):
    """ResNet for small images with 6 * blocks + 2 layers. He et al. 2016, arXiv 1512.03385, section 4.2.

    Args:
        blocks: blocks in each of the three stages (3 for ResNet-20, 9 for ResNet-56).
        num_classes: number of classes K.
        channels: channels of the image.
        projection: 1 x 1 convolutions where the width changes, instead of parameter-free shortcuts.
    """

    def __init__(self, blocks: int, num_classes: int, channels: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, projection)
        self.layer2 = _stage(blocks, 16, 32, projection)
        self.layer3 = _stage(blocks, 32, 64, projection)
        self.linear = nn.Linear(64, num_classes)
        _initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to the averaged last feature map (n, 64)."""
        # Channels last makes forward and backward a tenth to a third faster on a CPU.
        x = F.relu(self.bn1(self.conv1(x.contiguous(memory_format=torch.channels_last))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to logits (n, K)."""
        logits: Tensor = self.linear(self.features(x))
        return logits


def _stage(blocks: int, width_in: int, width: int, projection: bool) -> nn.Sequential:
    first = _Block(width_in, width, 1 if width == width_in else 2, projection)
    return nn.Sequential(first, *(_Block(width, width, 1, projection) for _ in range(blocks - 1)))


class SmallCNN(nn.Module):
    """Four 3 x 3 convolutions with batch normalisation and a global average; any image size.

    33,338 parameters for one channel and ten classes.

    Args:
        num_classes: number of classes K.
        channels: channels of the image.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, 16, 1), *_convolution(16, 32, 2), *_convolution(32, 32, 1), *_convolution(32, 64, 2)
        )
        self.linear = nn.Linear(64, num_classes)
        _initialise(self)

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


def _initialise(network: nn.Module) -> None:
    """He et al. 2015, arXiv 1502.01852, equation 10."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


class LayerList(nn.Sequential):
    """A plain network from a list of layers.

    A layer is `["conv", in, out, kernel, stride, padding]`, `["relu"]`, `["flat"]` or `["lin", in, out]`. Keys of the
    state are `0.weight`, `0.bias` and so on, by place in the list. Raises `BadInput` for a layer that cannot be built,
    or a last layer that is not linear.
    """

    def __init__(self, layers: Sequence[Sequence[Any]]) -> None:
        super().__init__(*(_layer(place, tuple(layer)) for place, layer in enumerate(layers)))
        if not len(self) or not isinstance(self[-1], nn.Linear):
            raise BadInput('the list of layers does not end in a linear layer: end it with ["lin", in, classes]')

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
        raise BadInput(f"layer {place} of the architecture is of unknown kind {kind!r}.{nearest(str(kind), _LAYERS)}")
    make, lowest = _LAYERS[kind]
    fits = len(numbers) == len(lowest) and all(
        type(number) is int and number >= low for number, low in zip(numbers, lowest, strict=True)
    )
    if not fits:
        raise BadInput(f"layer {place} of the architecture, {list(layer)}, is wrong: {kind} takes {len(lowest)} sizes")
    return make(*numbers)


def _resnet(blocks: int, projection: bool) -> Callable[[int, int], nn.Module]:
    return lambda num_classes, channels: CifarResNet(blocks, num_classes, channels, projection)


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet20": _resnet(3, projection=False),
    "resnet20-projection": _resnet(3, projection=True),
    "resnet56": _resnet(9, projection=False),
    "resnet56-projection": _resnet(9, projection=True),
    "cnn": SmallCNN,
}
"""Names to builders that take (num_classes, channels)."""


def build(arch: Architecture, num_classes: int, channels: int, seed: int = 0) -> nn.Module:
    """A network with fresh weights that depend on `seed` only; the global generators stay as they are.

    Raises `BadInput` for an unknown name, or a list of layers that does not fit the channels or classes.
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
    return f"the network takes {got} channels, but the images have {expected}: give a network made for this data set"


def wrong_classes(got: int, expected: int) -> str:
    """The message for a network made for another number of classes."""
    return f"the network has {got} classes, but the data set has {expected}: give a network made for this data set"
