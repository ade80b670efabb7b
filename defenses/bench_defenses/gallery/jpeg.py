"""JPEG coding: a non-differentiable, deterministic input transform."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from bench.defense import (
    BuildSetting,
    Card,
    DataAccess,
    DefendedClassifier,
    Defense,
    InputTransform,
)
from bench.errors import BadInput
from bench.noise import BuildNoise, Noise
from bench.spec import Params

Pixels = npt.NDArray[np.uint8]


class JPEGParams(Params):
    """Parameters of `jpeg`."""

    quality: int = Field(75, ge=1, le=95, description="the coder's quality")


class Coded(InputTransform):
    """Each image rounded to 8 bits, coded as JPEG by Pillow and decoded again. Nothing in it has a
    gradient.
    """

    def __init__(self, classifier: DefendedClassifier, quality: int) -> None:
        super().__init__(classifier)
        self.quality = quality

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """Grey or colour images (n, 1 or 3, H, W) in [0, 1] to the same shape, multiples of
        1/255.
        """
        _check_channels(images.shape[1])
        levels = (
            (images.detach() * 255)
            .round()
            .clamp(0, 255)
            .to(torch.uint8)
            .permute(0, 2, 3, 1)
            .cpu()
            .numpy()
        )
        decoded = np.stack([_coded(pixels, self.quality) for pixels in levels])
        # Another memory layout would make convolutions round otherwise than in the pass under bpda.
        coded = (
            torch.from_numpy(decoded)
            .permute(0, 3, 1, 2)
            .clone(memory_format=torch.contiguous_format)
        )
        return coded.to(images.device, images.dtype) / 255


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise BadInput(
            f"jpeg codes grey and colour images, but these have {channels} channels: use another "
            "data set"
        )


def _coded(pixels: Pixels, quality: int) -> Pixels:
    """uint8 (H, W, 1 or 3) there and back."""
    grey = pixels.shape[2] == 1
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, format="JPEG", quality=quality)
    buffer.seek(0)
    with Image.open(buffer) as image:
        return np.asarray(image).reshape(pixels.shape)


class JPEG(Defense[JPEGParams]):
    """JPEG compression; blocks gradients without adding robustness."""

    Params = JPEGParams
    gradients = ("full", "bpda")
    card = Card(
        paper="Guo et al., ICLR 2018, arXiv 1711.00117; broken by Athalye et al., ICML 2018, "
        "arXiv 1802.00420",
        note="what the coder removes is not what the attack adds",
        truth="0 % (BPDA with the identity, ImageNet, normalised L2 0.05; Athalye et al. 2018)",
        expected="base",
        surrogate="the identity",
        attacks=("bpda", "pgd", "ensemble:fast,gradient=bpda", "transfer:base"),
    )

    def check(self, setting: BuildSetting) -> None:
        """Raise `BadInput` for images that are neither grey nor in colour."""
        _check_channels(setting.shape[0])

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The coder in front of the classifier; its surrogate is the identity."""
        return Coded(classifier, self.params.quality)
