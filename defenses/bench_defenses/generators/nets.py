"""Generators: a latent vector, and for some a class, to an image with pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from bench.errors import BadInput
from bench.noise import Noise, isolated

Conditioning = Literal["none", "embed_mul", "branch"]
Architecture = Literal["shared", "dast_paper"]

_STAGES = 5
"""Doublings by which a branch of DaST's published generator comes from one pixel to 32."""

_TRUNK = (128, 256, 512, 256, 128, 64)


@dataclass(frozen=True)
class GeneratorSpec:
    """What a generator is.

    Attributes:
        size: length of the latent vector, N(0, 1) in each entry.
        conditioning: how a class enters. `none`: not at all; `embed_mul`: the latent vector times a
            learnt one of the class; `branch`: a projection of its own for each class.
        decoder: `shared`, the one of DFME and GDFQ; or `dast_paper`, DaST's published stacks of
            deconvolutions, a stack for each class, for images of 28 or 32 pixels.
        width: channels of the shared decoder's first maps.
        bn_eps: of the shared decoder's inner BatchNorm layers.
        affine: whether the BatchNorm before the shared decoder's sigmoid has a scale and a shift to
            learn. Without them every batch has pixels about a grey mean; with them they start where
            the pixels have the classifier's own mean and deviation.
    """

    size: int = 256
    conditioning: Conditioning = "none"
    decoder: Architecture = "shared"
    width: int = 128
    bn_eps: float = 1e-5
    affine: bool = True

    def check(self, shape: tuple[int, ...], classes: int, batch: int) -> None:
        """Raise `BadInput` for images or batches that it cannot make."""
        _, height, width = shape
        if self.decoder == "dast_paper" and (height != width or height not in (28, 32)):
            raise BadInput(
                f"dast_paper makes images of 28 or 32 pixels, but these are {height} x {width}: "
                "use decoder=shared"
            )
        if height % 4 or width % 4:
            raise BadInput(
                f"the generator makes sides that 4 divides, but the images are {height} x {width}: "
                "use another data set"
            )
        # A branch of DaST's own generator begins with BatchNorm over single pixels, which takes two
        # images.
        fewest = (
            (2 if self.decoder == "dast_paper" else 1) * classes
            if self.conditioning == "branch"
            else 2
        )
        if batch < fewest:
            raise BadInput(
                f"{batch} images a batch are too few for a generator with {classes} classes: give "
                f"at least {fewest}"
            )

    def draw(self, noise: Noise) -> Tensor:
        """Latent vectors (n, size), a row of noise each."""
        return noise.normal("latent", (self.size,))

    def classes(self, noise: Noise, classes: int) -> Tensor:
        """The classes (n,) to make: of branches equal shares in turn, otherwise each at random."""
        if self.conditioning == "branch":
            return torch.arange(len(noise), device=noise.device) * classes // len(noise)
        return noise.integers("class", 0, classes)

    def build(
        self, shape: tuple[int, ...], classes: int, seed: int, mean: Tensor, std: Tensor
    ) -> Generator:
        """A fresh generator, in training mode.

        Args:
            shape: of an image, (C, H, W).
            classes: number of classes K.
            seed: of its weights.
            mean, std: of the pixels by channel, (C,) or (1,), as the classifier expects them.
        """
        with isolated(seed):
            if self.decoder == "dast_paper":
                return Generator(_Stacks(self.size, classes), _trunk(shape))
            corner = (self.width, shape[1] // 4, shape[2] // 4)
            made = Generator(_stem(self, classes, corner), _decoder(self, shape[0]))
        last = made.decoder[-1]
        if isinstance(last, nn.BatchNorm2d) and self.affine:
            _begin_at(last, mean, std)
        return made


class Generator(nn.Module):
    """A stem, which alone knows the class, and a decoder.

    `forward` gives the logits of the pixels; `pixels` are their sigmoids.
    """

    def __init__(self, stem: nn.Module, decoder: nn.Sequential) -> None:
        super().__init__()
        self.stem, self.decoder = stem, decoder

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Latent vectors (n, size) and classes (n,) to (n, C, H, W)."""
        logits: Tensor = self.decoder(self.stem(latent, labels))
        return logits


def pixels(logits: Tensor) -> Tensor:
    """Images in [0, 1] out of what a generator gives."""
    return logits.sigmoid()


# The shared decoder -------------------------------------------------------------------------------


class _Projection(nn.Module):
    """Latent vectors to maps of the decoder's corner size."""

    def __init__(self, size: int, corner: tuple[int, int, int]) -> None:
        super().__init__()
        self.corner = corner
        self.linear = nn.Linear(size, corner[0] * corner[1] * corner[2])

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """The class means nothing here."""
        maps: Tensor = self.linear(latent)
        return maps.reshape(len(latent), *self.corner)


class _Embedded(_Projection):
    """The latent vector times the class's own."""

    def __init__(self, size: int, corner: tuple[int, int, int], classes: int) -> None:
        super().__init__(size, corner)
        self.embedding = nn.Embedding(classes, size)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """(n, width, H/4, W/4)."""
        return super().forward(latent * self.embedding(labels), labels)


class _Branches(nn.Module):
    """Some projection for each class."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Branch k makes the maps of the rows of class k."""
        rows = [(labels == k).nonzero().squeeze(1) for k in range(len(self.branches))]
        made = [
            branch(latent[here])
            for branch, here in zip(self.branches, rows, strict=True)
            if len(here)
        ]
        return torch.cat(made)[torch.cat(rows).argsort()]


def _stem(spec: GeneratorSpec, classes: int, corner: tuple[int, int, int]) -> nn.Module:
    if spec.conditioning == "embed_mul":
        return _Embedded(spec.size, corner, classes)
    if spec.conditioning == "none":
        return _Projection(spec.size, corner)
    flat = corner[0] * corner[1] * corner[2]
    return _Branches(
        [nn.Sequential(nn.Linear(spec.size, flat), nn.Unflatten(1, corner)) for _ in range(classes)]
    )


def _decoder(spec: GeneratorSpec, channels: int) -> nn.Sequential:
    width = spec.width
    return nn.Sequential(
        nn.BatchNorm2d(width),
        *_doubled(width, width, spec.bn_eps),
        *_doubled(width, max(1, width // 2), spec.bn_eps),
        nn.Conv2d(max(1, width // 2), channels, 3, padding=1),
        nn.BatchNorm2d(channels, affine=spec.affine),
    )


def _begin_at(norm: nn.BatchNorm2d, mean: Tensor, std: Tensor) -> None:
    """Scale and shift by channel from which the sigmoid makes pixels of this mean and deviation.

    No distribution on [0, 1] has a deviation above 1/2; from a classifier that expects one nothing
    follows about pixels.
    """
    if bool(((mean <= 0) | (mean >= 1) | (std > 0.5)).any()):
        return
    begins = [squashed(float(m), float(s)) for m, s in zip(mean, std, strict=True)]
    scale, shift = (
        torch.tensor(values).expand_as(norm.weight) for values in zip(*begins, strict=True)
    )
    with torch.no_grad():
        norm.weight.copy_(scale)
        norm.bias.copy_(shift)


@lru_cache(maxsize=64)
def squashed(mean: float, std: float, most: float = 6.0) -> tuple[float, float]:
    """(scale, shift), the scale at most `most`: sigmoid(scale u + shift), u standard normal, has
    this mean and deviation.
    """
    u = torch.linspace(-5, 5, 401, dtype=torch.float64)
    density = (-0.5 * u**2).exp() / (-0.5 * u**2).exp().sum()

    def moments(scale: float, shift: float) -> tuple[float, float]:
        values = (scale * u + shift).sigmoid()
        first = float((density * values).sum())
        return first, float((density * (values - first) ** 2).sum()) ** 0.5

    def shift_for(scale: float) -> float:
        return _root(lambda shift: moments(scale, shift)[0] - mean, -50.0, 50.0)

    scale = _root(lambda scale: moments(scale, shift_for(scale))[1] - std, 0.0, most)
    return scale, shift_for(scale)


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function is 0, or the end of the interval that is nearest to it."""
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def _doubled(width_in: int, width: int, eps: float) -> tuple[nn.Module, ...]:
    return (
        nn.Upsample(scale_factor=2),
        nn.Conv2d(width_in, width, 3, padding=1),
        nn.BatchNorm2d(width, eps=eps),
        nn.LeakyReLU(0.2),
    )


# DaST's published generator -----------------------------------------------------------------------


class _Stacks(_Branches):
    """One stack of deconvolutions for each class, from one pixel to 32."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__([_stack(size) for _ in range(classes)])

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """(n, 128, 32, 32)."""
        return super().forward(latent[:, :, None, None], labels)


def _stack(size: int) -> nn.Module:
    width = _TRUNK[0]
    first = (nn.Conv2d(size, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    again = [
        part
        for _ in range(_STAGES)
        for part in (
            nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
    ]
    return nn.Sequential(*first, *again)


def _trunk(shape: tuple[int, ...]) -> nn.Sequential:
    """Two unpadded convolutions bring 32 pixels to 28."""
    widths = (*_TRUNK, shape[0])
    unpadded = 2 if shape[1] == 28 else 0
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise(widths)):
        padding = 0 if place < unpadded else 1
        layers += [
            nn.Conv2d(before, after, 3, padding=padding, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(shape[0], shape[0], 3, padding=1, bias=False))
