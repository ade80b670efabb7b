"""Gaussian noise on the image."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, InputTransform
from bench.noise import BuildNoise, Noise
from bench.spec import Params


class GaussianNoiseParams(Params):
    """Parameters of `gaussian-noise`."""

    sigma: float = Field(
        0.1, gt=0, le=10, description="standard deviation, in pixel units of [0, 1]"
    )


class Noisy(InputTransform):
    """The image plus independent Gaussian noise; not clipped, so that no gradient is lost at the
    box.
    """

    gradients = ("full",)
    stochastic = True

    def __init__(self, classifier: DefendedClassifier, sigma: float) -> None:
        super().__init__(classifier)
        self.sigma = sigma

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """x + sigma * n, n ~ N(0, 1)."""
        return images + self.sigma * noise.normal("gauss", tuple(images.shape[1:]))


class GaussianNoise(Defense[GaussianNoiseParams]):
    """Gaussian noise on the image, on a classifier that was not trained for it."""

    Params = GaussianNoiseParams
    stochastic = True
    card = Card(
        paper="Cohen et al., ICML 2019, arXiv 1902.02918 certify a majority of many draws; one "
        "draw certifies nothing",
        note="differentiable; the noise that moves the image is small beside eps and averages "
        "out over the steps",
        truth="the base's, where sigma is below eps",
        expected="base",
        attacks=("pgd:randomness=(eot:k=5)", "pgd", "em", "ensemble:fast", "transfer:base"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The noise in front of the classifier."""
        return Noisy(classifier, self.params.sigma)
