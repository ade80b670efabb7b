"""A detached image: the gradient does not exist."""

from __future__ import annotations

from torch import Tensor

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, InputTransform, NoParams
from bench.noise import BuildNoise, Noise


class Detached(InputTransform):
    """The image itself, cut off from the graph."""

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """x, without gradient."""
        return images.detach()


class GradientKiller(Defense[NoParams]):
    """The image cut off from the graph: the classifier itself, without a gradient."""

    gradients = ("full", "bpda")
    card = Card(
        note="the plainest form of gradient masking: the same function, of which autograd knows "
        "nothing",
        truth="the base's own robust accuracy, exactly: no output changes",
        expected="base",
        surrogate="the identity",
        attacks=("bpda", "pgd", "ensemble:fast,gradient=bpda", "transfer:base"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The cut in front of the classifier."""
        return Detached(classifier)
