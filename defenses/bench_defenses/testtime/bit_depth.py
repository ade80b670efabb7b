"""Bit-depth reduction: a non-differentiable, deterministic input transform."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, InputTransform
from bench.noise import BuildNoise, Noise
from bench.spec import Params


class BitDepthParams(Params):
    """Parameters of `bit-depth`."""

    bits: int = Field(3, ge=1, le=8, description="bits kept of each 8-bit pixel")


class ReducedBits(InputTransform):
    """Keeps the top bits of each pixel. Piecewise constant, so its native gradient is zero almost
    everywhere.
    """

    def __init__(self, classifier: DefendedClassifier, bits: int) -> None:
        super().__init__(classifier)
        self.step = 2 ** (8 - bits)

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """floor(255 x / step) * step / 255."""
        # A pixel k/255 times 255 may round to just below k; the nudge keeps its level.
        levels = torch.floor((images * 255 + 1e-3) / self.step)
        reduced: Tensor = levels * (self.step / 255)
        return reduced


class BitDepth(Defense[BitDepthParams]):
    """Bit-depth reduction; blocks gradients without adding robustness."""

    Params = BitDepthParams
    gradients = ("full", "bpda")
    card = Card(
        paper="Guo et al., ICLR 2018, arXiv 1711.00117; broken by Athalye et al., ICML 2018, "
        "arXiv 1802.00420",
        note="on images of two grey levels, such as MNIST's, it truly absorbs an eps below half "
        "its step",
        truth="0 % (BPDA with the identity, ImageNet, normalised L2 0.05; Athalye et al. 2018)",
        expected="base",
        surrogate="the identity",
        attacks=("bpda", "pgd", "ensemble:fast,gradient=bpda", "transfer:base"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The quantiser in front of the classifier; its surrogate is the identity."""
        return ReducedBits(classifier, self.params.bits)
