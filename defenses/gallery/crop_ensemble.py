"""The mean answer over random crops."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, Forward
from bench.errors import BadInput
from bench.noise import Noise
from bench.spec import Params


class CropEnsembleParams(Params):
    """Parameters of `crop-ensemble`."""

    crops: int = Field(10, ge=1, le=1000, description="crops an answer")
    share: float = Field(0.9, gt=0, lt=1, description="side of a crop over side of the image")


class Cropped(DefendedClassifier):
    """Random crops of one size, each scaled back to the image's size and classified; the log of the mean softmax."""

    stochastic = True

    def __init__(self, classifier: DefendedClassifier, params: CropEnsembleParams) -> None:
        super().__init__()
        self.classifier = classifier
        self.params = params
        self.num_classes = classifier.num_classes
        self.gradients = classifier.gradients

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        """Log-probabilities (n, num_classes)."""
        return self.twin()(images, noise)

    def twin(self, gradient: str = "full", view: str = "logits") -> Forward:
        """The classifier's gradients; the crops are differentiable as they stand."""
        if view != "logits":
            raise BadInput(f"unknown view {view!r}: this classifier offers logits")
        inner = self.classifier.twin(gradient, view)

        def run(images: Tensor, noise: Noise) -> Tensor:
            # One crop a pass, so that the batch is never larger than it was asked to be.
            places = [noise.at(f"crop/{i}") for i in range(self.params.crops)]
            answers = [inner(crop(images, self.params.share, at), at.at("classifier")).log_softmax(1) for at in places]
            return torch.stack(answers).logsumexp(0) - math.log(self.params.crops)

        return run


def crop(images: Tensor, share: float, noise: Noise) -> Tensor:
    """A random crop of each image (n, C, H, W), scaled back to (n, C, H, W) bilinearly."""
    height, width = images.shape[2:]
    high, wide = max(1, round(share * height)), max(1, round(share * width))
    rows = noise.integers("top", 0, height - high + 1)[:, None] + torch.arange(high, device=images.device)
    columns = noise.integers("left", 0, width - wide + 1)[:, None] + torch.arange(wide, device=images.device)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    cropped = images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    return F.interpolate(cropped, size=(height, width), mode="bilinear", align_corners=False)


class CropEnsemble(Defense[CropEnsembleParams]):
    """The mean answer over random crops; stochastic and differentiable."""

    Params = CropEnsembleParams
    card = Card(
        paper="Guo et al., ICLR 2018, arXiv 1711.00117; broken by Athalye et al., ICML 2018, arXiv 1802.00420",
        note="30 crops of 90 of 299 pixels there; a digit does not survive so small a crop, so crops are larger here",
        truth="0 % (EOT, ImageNet, normalised L2 0.05; Athalye et al. 2018); PGD with one draw a step is enough (Gao et al. 2022)",
        expected="base",
        attacks=("pgd", "pgd+eot"),
    )

    @property
    def stochastic(self) -> bool:
        """Always: the crops' places are drawn."""
        return True

    def build(self, classifier: DefendedClassifier, access: DataAccess, noise: Noise) -> DefendedClassifier:
        """The classifier asked several times."""
        return Cropped(classifier, self.params)
