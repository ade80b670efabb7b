"""The mean answer over random crops."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, InputTransform
from bench.noise import BuildNoise, Noise
from bench.spec import Params
from bench_defenses.ensemble import Ensemble


class CropEnsembleParams(Params):
    """Parameters of `crop-ensemble`."""

    crops: int = Field(10, ge=1, le=1000, description="crops an answer")
    share: float = Field(0.9, gt=0, lt=1, description="side of a crop over side of the image")


class Cropped(InputTransform):
    """A random crop of one size, scaled back to the image's size."""

    stochastic = True
    # Differentiable itself: there is nothing for BPDA to replace.
    gradients = ("full",)

    def __init__(self, classifier: DefendedClassifier, share: float) -> None:
        super().__init__(classifier)
        self.share = share

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """A crop of each image (n, C, H, W)."""
        return crop(images, self.share, noise)


def crop(images: Tensor, share: float, noise: Noise) -> Tensor:
    """A random crop of each image (n, C, H, W), scaled back to (n, C, H, W) bilinearly."""
    height, width = images.shape[2:]
    high, wide = max(1, round(share * height)), max(1, round(share * width))
    rows = noise.integers("top", 0, height - high + 1)[:, None] + torch.arange(
        high, device=images.device
    )
    columns = noise.integers("left", 0, width - wide + 1)[:, None] + torch.arange(
        wide, device=images.device
    )
    which = torch.arange(len(images), device=images.device)[:, None, None]
    cropped = (
        images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    )
    return F.interpolate(cropped, size=(height, width), mode="bilinear", align_corners=False)


class CropEnsemble(Defense[CropEnsembleParams]):
    """The mean answer over random crops; stochastic and differentiable."""

    Params = CropEnsembleParams
    stochastic = True
    card = Card(
        paper="Guo et al., ICLR 2018, arXiv 1711.00117; broken by Athalye et al., ICML 2018, "
        "arXiv 1802.00420",
        note="30 crops of 90 of 299 pixels there; a digit does not survive so small a crop, so "
        "crops are larger here",
        truth="0 % (EOT, ImageNet, normalised L2 0.05; Athalye et al. 2018); PGD with one draw a "
        "step is enough (Gao et al. 2022)",
        expected="base",
        attacks=("pgd", "pgd+eot", "em", "ensemble:fast"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The classifier asked several times, each time about another crop; the log of the mean
        softmax.
        """
        return Ensemble(Cropped(classifier, self.params.share), self.params.crops, "crop")
