"""Random resizing and padding."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, InputTransform
from bench.noise import BuildNoise, Noise
from bench.spec import Params
from bench_defenses.ensemble import Ensemble


class RandomResizeParams(Params):
    """Parameters of `random-resize`."""

    grow: int = Field(
        4,
        ge=0,
        le=512,
        description="canvas side minus image side; 0 keeps the size and shrinks instead",
    )
    shrink: int = Field(
        0, ge=0, le=512, description="how much smaller than the image the smallest draw is"
    )
    mode: Literal["nearest", "bilinear"] = Field("nearest", description="interpolation")
    pad_value: float = Field(0.0, ge=0, le=1, description="pixel value around the image")
    draw: Literal["image", "batch"] = Field(
        "image", description="each image its own size and place, or one for all"
    )
    ensemble: int = Field(
        1, ge=1, le=1000, description="draws an answer: the log of their mean softmax"
    )

    @model_validator(mode="after")
    def _something_is_random(self) -> RandomResizeParams:
        if self.grow + self.shrink == 0:
            raise ValueError("nothing is random with grow=0 and shrink=0: raise one of them")
        return self


class ResizedAndPadded(InputTransform):
    """Each image resized to a random side and placed at a random offset on a canvas."""

    # Differentiable itself: there is nothing for BPDA to replace.
    gradients = ("full",)

    def __init__(self, classifier: DefendedClassifier, params: RandomResizeParams) -> None:
        super().__init__(classifier)
        self.params = params
        self.stochastic = True

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """Images (n, C, S, S) to (n, C, S + grow, S + grow)."""
        if self.params.draw == "batch":
            noise = noise.shared()
        side = images.shape[-1]
        canvas = side + self.params.grow
        sides = noise.integers("side", side - self.params.shrink, canvas + 1)
        left = noise.integers("left", 0, canvas - sides + 1)
        top = noise.integers("top", 0, canvas - sides + 1)
        return self._place(images, canvas, sides, left, top)

    def _place(
        self, images: Tensor, canvas: int, sides: Tensor, left: Tensor, top: Tensor
    ) -> Tensor:
        """Gather each canvas pixel from its source; one gather serves a batch of different
        sizes.
        """
        rows, row_weight, row_in = self._sources(images.shape[-2], canvas, sides, top)
        columns, column_weight, column_in = self._sources(images.shape[-1], canvas, sides, left)
        placed = _blend(images, 2, rows, row_weight)
        placed = _blend(placed, 3, columns, column_weight)
        inside = (row_in[:, :, None] & column_in[:, None, :])[:, None]
        return torch.where(inside, placed, torch.full_like(placed, self.params.pad_value))

    def _sources(
        self, source: int, canvas: int, sides: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For each canvas line: the two source lines (n, canvas, 2), the second one's weight, and
        whether it is inside.
        """
        line = torch.arange(canvas, device=sides.device) - offset[:, None]
        inside = (line >= 0) & (line < sides[:, None])
        scale = source / sides[:, None].float()
        if self.params.mode == "nearest":
            exact = torch.div(line * source, sides[:, None], rounding_mode="floor").float()
        else:
            exact = (line + 0.5) * scale - 0.5
        exact = exact.clamp(0, source - 1)
        low = exact.floor()
        pair = torch.stack([low, (low + 1).clamp(max=source - 1)], -1).long()
        return pair, exact - low, inside


def _blend(images: Tensor, dim: int, pair: Tensor, weight: Tensor) -> Tensor:
    """Linear interpolation between two source lines along `dim` of (n, C, H, W)."""

    def take(index: Tensor) -> Tensor:
        wanted = [len(images), images.shape[1], images.shape[2], images.shape[3]]
        wanted[dim] = index.shape[1]
        shape = [len(index), 1, 1, 1]
        shape[dim] = index.shape[1]
        return images.gather(dim, index.reshape(shape).expand(wanted))

    shape = [len(weight), 1, 1, 1]
    shape[dim] = weight.shape[1]
    second = weight.reshape(shape)
    return take(pair[..., 0]) * (1 - second) + take(pair[..., 1]) * second


class RandomResize(Defense[RandomResizeParams]):
    """Random resizing and padding at test time; stochastic and differentiable."""

    Params = RandomResizeParams
    stochastic = True
    card = Card(
        paper="Xie et al., ICLR 2018, arXiv 1711.01991; broken by Athalye et al., ICML 2018, "
        "arXiv 1802.00420",
        note="one draw a step is enough (Gao et al. 2022); the authors' competition entry made "
        "331 pixels of 299 with one draw a "
        "batch, grey padding and 30 draws an answer (draw=batch,pad_value=0.5,ensemble=30), half "
        "of them mirrored",
        truth="0 % (EOT, ImageNet, Linf 0.031; Athalye et al. 2018)",
        expected="base",
        attacks=("pgd", "pgd+eot", "pgd+replay", "em", "ensemble:fast", "transfer:base"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The random transform in front of the classifier."""
        once = ResizedAndPadded(classifier, self.params)
        return once if self.params.ensemble == 1 else Ensemble(once, self.params.ensemble, "draw")
