"""A ripple too fine to see and too steep to follow."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, InputTransform
from bench.noise import BuildNoise, Noise
from bench.spec import Params


class ShatteredGradientParams(Params):
    """Parameters of `shattered-gradient`."""

    amplitude: float = Field(
        0.01, gt=0, le=1, description="height of the ripple, in pixel units of [0, 1]"
    )
    frequency: float = Field(1e4, gt=0, le=1e6, description="radians a pixel unit")


class Rippled(InputTransform):
    """Each pixel plus a sine of it. Its slope 1 + amplitude * frequency * cos(frequency * x) says
    nothing about the way up.
    """

    def __init__(self, classifier: DefendedClassifier, params: ShatteredGradientParams) -> None:
        super().__init__(classifier)
        self.params = params

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """x + amplitude * sin(frequency * x)."""
        return images + self.params.amplitude * torch.sin(self.params.frequency * images)


class ShatteredGradient(Defense[ShatteredGradientParams]):
    """A fine, steep ripple on each pixel: gradients exist, are large, and point anywhere."""

    Params = ShatteredGradientParams
    gradients = ("full", "bpda")
    card = Card(
        paper="the phenomenon: Athalye et al., ICML 2018, arXiv 1802.00420, section 3.1 "
        "(shattered gradients)",
        note="a finding on zero gradients sees nothing here; the ripple moves a pixel by no "
        "more than its amplitude",
        truth="the base's, for eps well above the amplitude",
        expected="base",
        surrogate="the identity",
        attacks=("bpda", "pgd", "ensemble:fast,gradient=bpda", "transfer:base"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The ripple in front of the classifier."""
        return Rippled(classifier, self.params)
