"""Residual networks for small images: a 3 x 3 stem, stride 1 and no pooling before the stages, a
global average after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al. 2016, figure 2)."""

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(width_in, width, stride, projection)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, width_in, H, W) to (n, width, H / stride, W / stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with a shortcut (He et al. 2016, figure 5); the 3 x 3 one
    takes the stride.
    """

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int, projection: bool) -> None:
        super().__init__()
        out = self.expansion * width
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut = _shortcut(width_in, out, stride, projection)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, width_in, H, W) to (n, 4 width, H / stride, W / stride)."""
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


def _shortcut(width_in: int, width: int, stride: int, projection: bool) -> nn.Module:
    if width == width_in:
        return nn.Identity()
    if projection:
        return nn.Sequential(
            nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
        )
    return _PaddedShortcut((width - width_in) // 2)


class _PaddedShortcut(nn.Module):
    """Every second pixel, zeros for the new channels, no parameters: option A of He et al. 2016,
    section 3.3.
    """

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class CifarResNet(nn.Module):
    """ResNet for small images. He et al. 2016, arXiv 1512.03385.

    Three stages from width 16 make the ResNet-20, -56 and -110 of section 4.2; four from width 64
    make the ResNet-18 and -50 of table 1 with a 3 x 3 stem instead of the 7 x 7 one and its
    max-pool.

    Args:
        counts: blocks in each stage; the width doubles from stage to stage.
        num_classes: number of classes K.
        channels: channels of the image.
        projection: 1 x 1 convolutions where the width changes, instead of parameter-free shortcuts.
        width: of the stem and the first stage.
        block: `BasicBlock` or `Bottleneck`.
    """

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    def __init__(
        self,
        counts: Sequence[int],
        num_classes: int,
        channels: int,
        *,
        projection: bool,
        width: int = 16,
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(counts)
        width_in = width
        for stage, count in enumerate(counts):
            blocks = []
            for place in range(count):
                blocks.append(
                    block(width_in, width << stage, 2 if stage and not place else 1, projection)
                )
                width_in = block.expansion * (width << stage)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(width_in, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to the averaged last feature map (n, d)."""
        # Channels last makes forward and backward a tenth to a third faster on a CPU.
        x = F.relu(self.bn1(self.conv1(x.contiguous(memory_format=torch.channels_last))))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to logits (n, K)."""
        logits: Tensor = self.linear(self.features(x))
        return logits


class _WideBlock(nn.Module):
    """Batch norm and ReLU before each of two 3 x 3 convolutions; a 1 x 1 shortcut where the width
    changes.
    """

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(width_in, width, 1, stride, bias=False) if width != width_in else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-depth-factor of Zagoruyko and Komodakis 2016, arXiv 1605.07146, table 1, without dropout.

    Args:
        depth: 6 N + 4 for N blocks a stage.
        factor: the stages are 16, 32 and 64 times as wide.
        num_classes: number of classes K.
        channels: channels of the image.
    """

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    def __init__(self, depth: int, factor: int, num_classes: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.layer1 = _wide_stage(blocks, 16, 16 * factor, 1)
        self.layer2 = _wide_stage(blocks, 16 * factor, 32 * factor, 2)
        self.layer3 = _wide_stage(blocks, 32 * factor, 64 * factor, 2)
        self.bn = nn.BatchNorm2d(64 * factor)
        self.linear = nn.Linear(64 * factor, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to the averaged last feature map (n, 64 factor)."""
        x = self.conv1(x.contiguous(memory_format=torch.channels_last))
        x = self.layer3(self.layer2(self.layer1(x)))
        return F.relu(self.bn(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) to logits (n, K)."""
        logits: Tensor = self.linear(self.features(x))
        return logits


def _wide_stage(blocks: int, width_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _WideBlock(width_in, width, stride),
        *(_WideBlock(width, width, 1) for _ in range(blocks - 1)),
    )


def initialise(network: nn.Module) -> None:
    """He et al. 2015, arXiv 1502.01852, equation 10."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
