"""Randomized smoothing of a classifier that is trained under the noise first."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from bench.defense import (
    BuildSetting,
    Card,
    DataAccess,
    DefendedClassifier,
    Defense,
    Need,
    Wrapper,
)
from bench.errors import BadInput
from bench.models.recipes import Recipe
from bench.models.training import device_of, fit
from bench.noise import BuildNoise, Noise
from bench_defenses.testtime.smoothing import STAGE, SmoothingParams, VotingUnderNoise


class NoiseTrainedParams(SmoothingParams):
    """Parameters of `noise-trained`."""

    sigma: float = Field(
        0.25, gt=0, le=10, description="standard deviation, in pixel units of [0, 1]"
    )
    epochs: int = Field(10, ge=1, le=10_000, description="passes over the training images")
    rate: float = Field(0.02, gt=0, le=10, description="peak learning rate")


class _UnderNoise(Wrapper):
    """The classifier on images under noise of each call's own."""

    stochastic = True

    def __init__(self, classifier: DefendedClassifier, sigma: float) -> None:
        super().__init__(classifier)
        self._sigma = sigma
        self._calls = 0

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        """Takes the one row of noise of a training step."""
        self._calls += 1
        draw = noise.at(f"step-{self._calls}").normal("gauss", tuple(images.shape))[0]
        logits: Tensor = self.classifier(images + self._sigma * draw, noise)
        return logits


class NoiseTrained(Defense[NoiseTrainedParams]):
    """`smoothing` of the classifier, trained further on its training images under the noise."""

    Params = NoiseTrainedParams
    builds = VotingUnderNoise
    stages = (STAGE,)
    needs = frozenset({Need.TRAINING_DATA})
    card = Card(
        paper="Cohen, Rosenfeld, Kolter, ICML 2019, arXiv 1902.02918, section 3.3",
        note="one noisy copy of each image an epoch, not shifted or mirrored, from the "
        "classifier's weights on; certificates (`bench certify`) speak of the vote of infinitely "
        "many draws",
        attacks=("pgd", "pgd+eot", "pgd+replay", "em"),
    )

    def check(self, setting: BuildSetting) -> None:
        """Raises `BadInput` for a classifier that draws random numbers."""
        if setting.classifier.stochastic:
            raise BadInput(
                "noise-trained trains a classifier that draws nothing itself: give another "
                "classifier, or smoothing, which trains none"
            )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The vote around the classifier, after its training."""
        images, labels = access.training_data()
        place = device_of(classifier)
        recipe = Recipe(self.params.epochs, batch=64, rate=self.params.rate, shift=0)
        trained = _UnderNoise(classifier, self.params.sigma)
        fit(trained, images.to(place), labels.to(place), recipe, seed=noise.seed("training"))
        return VotingUnderNoise(classifier, self.params)
