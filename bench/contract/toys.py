"""The images and the classifiers that contracts are checked on; made in memory, without a
download.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench.data.dataset import Dataset, ImageSet
from bench.defense import InputTransform
from bench.noise import Noise, Stream, isolated
from bench.spec import Params

SIDE = 16
"""Side of the built-in images: three channels, pixels in [0, 1]."""

CLASSES = 3


class InMemory(Dataset[Params]):
    """Images that are at hand, for evaluation and for training."""

    default_eps = 8 / 255

    def __init__(
        self, images: ImageSet, training: ImageSet, classes: int, spare: ImageSet | None = None
    ) -> None:
        super().__init__(Params())
        self._images, self._training, self._classes = images, training, classes
        self._test = images if spare is None else _joined(images, spare)
        _, channels, side, _ = images.images.shape
        self.default_generator = f"gaussian:channels={channels},side={side}"  # type: ignore[misc]

    @property
    def num_classes(self) -> int:
        return self._classes

    def test(self) -> ImageSet:
        """The images to evaluate on, and behind them the spare ones."""
        return self._test

    def train(self) -> ImageSet:
        return self._training


def gratings(n: int, first: int = 0) -> ImageSet:
    """Colour images (n, 3, 16, 16) of three classes (stripes down, across, both) under noise of
    scale 0.08.
    """
    ids = np.arange(first, first + n, dtype=np.int64)
    labels = torch.from_numpy(ids % CLASSES)
    noise = Noise.of(0, Stream.BUILD, ids).at("gratings")
    wave = torch.sin(torch.arange(SIDE) * (2 * math.pi / 8))
    across, down = wave[None, :].expand(SIDE, SIDE), wave[:, None].expand(SIDE, SIDE)
    patterns = torch.stack([down, across, down * across])[labels][:, None]
    images = 0.5 + 0.1 * patterns + 0.08 * noise.normal("pixels", (3, SIDE, SIDE))
    return ImageSet(images.clamp(0, 1), labels, ids)


def _joined(one: ImageSet, other: ImageSet) -> ImageSet:
    images, labels = torch.cat([one.images, other.images]), torch.cat([one.labels, other.labels])
    return ImageSet(images, labels, np.concatenate([one.ids, other.ids]))


def labelled(images: Tensor, labels: Tensor) -> ImageSet:
    """Images (n, C, H, W) in [0, 1] with labels (n,), numbered in their order."""
    return ImageSet(images, labels, np.arange(len(images), dtype=np.int64))


class SmallNet(nn.Module):
    """Convolution, batch normalisation, SiLU, pooling to 4 x 4, a linear head fitted by least
    squares; for images of any size.

    Smooth, so that every image has a gradient everywhere; its batch statistics are those of the
    training images.
    """

    def __init__(self, training: ImageSet) -> None:
        super().__init__()
        with isolated(0):
            self.convolution = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8, momentum=None)
            self.head = nn.Linear(128, CLASSES)
        with torch.no_grad():
            self.norm(self.convolution(training.pixels()))
            self.eval()
            self._fit(self.features(training.pixels()), training.labels)

    def _fit(self, features: Tensor, labels: Tensor) -> None:
        targets = 4 * nn.functional.one_hot(labels, CLASSES).float()
        ridge = features.T @ features + 0.1 * torch.eye(features.shape[1])
        self.head.weight.copy_(torch.linalg.solve(ridge, features.T @ targets).T)
        self.head.bias.zero_()

    def features(self, images: Tensor) -> Tensor:
        """What the head sees, (n, 128)."""
        maps = nn.functional.silu(self.norm(self.convolution(images)))
        return nn.functional.adaptive_avg_pool2d(maps, 4).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 3)."""
        logits: Tensor = self.head(self.features(images))
        return logits


class Linear(nn.Module):
    """Two logits, w . x and -w . x: an image x of label 0 survives Linf eps inside the box exactly
    if w . x > eps |w|_1.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 2)."""
        score = ((images - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([score, -score], 1)


@dataclass(frozen=True)
class LinearProblem:
    """A linear model, images away from the edges of the box, and how far each lies from the
    boundary in Linf (n,).
    """

    model: Linear
    images: ImageSet
    distance: Tensor


def linear_problem(n: int) -> LinearProblem:
    """Images (n, 1, 4, 4), whose distances from the boundary are spread evenly over (0, 0.1]."""
    noise = Noise.of(0, Stream.BUILD, range(n)).at("linear")
    weight = Noise.of(0, Stream.BUILD, [n]).at("linear").normal("weight", (1, 4, 4))[0]
    labels = torch.arange(n) % 2
    distance = 0.1 * (torch.arange(n) + 1) / n
    along = 0.2 * (noise.uniform("pixels", (1, 4, 4)) - 0.5)
    along = along - weight * ((along * weight).flatten(1).sum(1) / weight.square().sum()).reshape(
        -1, 1, 1, 1
    )
    signed = torch.where(labels == 0, distance, -distance).reshape(-1, 1, 1, 1)
    return LinearProblem(
        Linear(weight), labelled(0.5 + along + signed * weight.sign(), labels), distance
    )


class Jittered(InputTransform):
    """Gaussian input noise of scale 0.05: a random defense to attack."""

    stochastic = True

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """images + 0.05 N(0, 1)."""
        return images + 0.05 * noise.normal("jitter", tuple(images.shape[1:]))


class Quantised(InputTransform):
    """Sixteen grey levels: a defense without gradients to attack."""

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """Each pixel rounded to a multiple of 1/15."""
        return (images.detach() * 15).round() / 15
