"""Test-time transformation ensembling: the mean answer over fixed flips and crops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, Forward, Wrapper
from bench.noise import BuildNoise, Noise
from bench.spec import Params

Transform = Callable[[Tensor], Tensor]


class TTEParams(Params):
    """Parameters of `tte`."""

    flip: bool = Field(True, description="a mirrored view")
    crops: int = Field(4, ge=0, le=1000, description="cropped views")
    flip_crops: bool = Field(True, description="each crop of the mirrored image, too")
    blur: float = Field(0.0, ge=0, le=100, description="sigma of a 5 x 5 Gaussian view; 0 for none")
    pad: int = Field(
        0,
        ge=0,
        le=512,
        description="black pixels on each side before cropping; 0 = an eighth of the side",
    )
    mode: Literal["described", "as_released"] = Field(
        "described", description="every crop, or the last one in the place of all"
    )

    @model_validator(mode="after")
    def _something_is_averaged(self) -> TTEParams:
        if not (self.flip or self.crops or self.blur):
            raise ValueError("the image itself is the only view: ask for flip, crops or blur")
        return self


class View:
    """One term of the mean: its name, how the image is changed, and its weight."""

    def __init__(self, name: str, transform: Transform, weight: float) -> None:
        self.name = name
        self.transform = transform
        self.weight = weight


class Averaged(Wrapper):
    """The weighted mean of a classifier's logits over fixed views of the image."""

    gradients = ("full", "blind")
    transfers = ("blind",)

    def __init__(self, classifier: DefendedClassifier, terms: list[View]) -> None:
        super().__init__(classifier)
        self.terms = {f"single:{term.name}": term for term in terms}

    def views(self) -> tuple[str, ...]:
        """The mean, `base`, and the answer on each view of the image, `single:NAME`."""
        return ("logits", "base", *self.terms)

    def forward_pass(self, gradient: str = "full", view: str = "logits") -> Forward:
        """Exact gradients, and `blind`: the classifier alone."""
        self.check_gradient(gradient)
        if gradient == "blind" or view == "base":
            inner = self.inner("full" if gradient == "blind" else gradient, "logits")
            return lambda images, noise: inner(images, noise.at("classifier"))
        if view not in self.views():
            return super().forward_pass(gradient, view)
        chosen = self.terms.values() if view == "logits" else [self.terms[view]]
        return partial(self._mean, self.inner(gradient, "logits"), list(chosen), view == "logits")

    def _mean(
        self, inner: Forward, terms: list[View], weighted: bool, images: Tensor, noise: Noise
    ) -> Tensor:
        # One view a pass, so that the batch is never larger than it was asked to be.
        answers = [inner(term.transform(images), noise.at("classifier")) for term in terms]
        if not weighted:
            return answers[0]
        return torch.stack(
            [term.weight * answer for term, answer in zip(terms, answers, strict=True)]
        ).sum(0)


def terms_of(
    params: TTEParams, origins: list[tuple[int, int]], pads: tuple[int, int]
) -> list[View]:
    """Identity, mirror, crops, mirrored crops, blur; under `as_released` only the last crop, with
    the weight of all of them.
    """
    kept = list(enumerate(origins)) if params.mode == "described" else list(enumerate(origins))[-1:]
    share = len(origins) / max(len(kept), 1)
    parts: list[tuple[str, Transform, float]] = [("image", lambda images: images, 1.0)]
    parts += [("flip", mirrored, 1.0)] * params.flip
    parts += [(f"crop{i}", partial(cropped, pads=pads, origin=at), share) for i, at in kept]
    if params.flip_crops:
        parts += [
            (f"flip-crop{i}", partial(_mirrored_crop, pads=pads, origin=at), share)
            for i, at in kept
        ]
    parts += [("blur", partial(blurred, sigma=params.blur), 1.0)] * bool(params.blur)
    total = sum(weight for _, _, weight in parts)
    return [View(name, transform, weight / total) for name, transform, weight in parts]


def mirrored(images: Tensor) -> Tensor:
    """Left to right."""
    return images.flip(3)


def cropped(images: Tensor, pads: tuple[int, int], origin: tuple[int, int]) -> Tensor:
    """The window of the image's size at `origin` (top, left) of the image (n, C, H, W) padded with
    black.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (pads[1], pads[1], pads[0], pads[0]))
    return padded[:, :, origin[0] : origin[0] + height, origin[1] : origin[1] + width]


def _mirrored_crop(images: Tensor, pads: tuple[int, int], origin: tuple[int, int]) -> Tensor:
    return cropped(mirrored(images), pads, origin)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """A 5 x 5 Gaussian over the image reflected at its edges."""
    line = torch.exp(-torch.arange(-2.0, 3.0, device=images.device).square() / (2 * sigma**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    channels = images.shape[1]
    return F.conv2d(
        F.pad(images, (2, 2, 2, 2), mode="reflect"),
        kernel.expand(channels, 1, 5, 5),
        groups=channels,
    )


class TTE(Defense[TTEParams]):
    """Mean logits over the image, its mirror image and fixed crops of both; deterministic and
    differentiable.
    """

    Params = TTEParams
    gradients = ("full", "blind")
    card = Card(
        paper="Perez et al., ICCVW 2021, arXiv 2107.14110",
        note="published numbers are of mode=as_released, in which every crop is the last one "
        "(closures bind late), at eps 0.031, "
        "on adversarially trained classifiers; on another classifier it defends nothing",
        attacks=("pgd", "views:single", "pgd:gradient=blind", "ensemble:standard"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """Crops are drawn here, once: each origin uniform on {0, ..., 2 pad - 1}, as released; 2
        pad itself is never drawn.
        """
        height, width = access.shape[1:]
        pads = (
            self.params.pad or max(1, round(height / 8)),
            self.params.pad or max(1, round(width / 8)),
        )
        places = [noise.at("crop").at(str(i)) for i in range(self.params.crops)]
        origins = [
            (int(at.integers("top", 0, 2 * pads[0])), int(at.integers("left", 0, 2 * pads[1])))
            for at in places
        ]
        return Averaged(classifier, terms_of(self.params, origins, pads))
