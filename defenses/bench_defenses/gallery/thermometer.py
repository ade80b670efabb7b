"""Thermometer encoding: each pixel as a row of ones and zeros."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, InputTransform, Need
from bench.models.classifier import Classifier
from bench.models.nets import build
from bench.models.recipes import Recipe
from bench.models.training import device_of, fit
from bench.noise import BuildNoise, Noise
from bench.spec import Params


class ThermometerParams(Params):
    """Parameters of `thermometer`."""

    levels: int = Field(16, ge=2, le=256, description="channels that one channel becomes")
    arch: str = Field("cnn", description="the network that is trained on the code")
    epochs: int = Field(10, ge=1, le=1000, description="passes over the training images")


class Encoded(InputTransform):
    """Cumulative one-hot channels in front of a network that was trained on them. Zero gradient
    almost everywhere.
    """

    def __init__(self, classifier: DefendedClassifier, levels: int) -> None:
        super().__init__(classifier)
        self.levels = levels

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """1 where x > k / levels for k = 0, 1, ..., else 0: (n, C, H, W) to (n, C * levels,
        H, W).
        """
        return (self._above(images) > 0).to(images.dtype).flatten(1, 2)

    def surrogate(self, images: Tensor, noise: Noise) -> Tensor:
        """min(max(x - k / levels, 0), 1) (Athalye et al. 2018, section 5.2.1), with slope 1 from
        bound to bound.

        The slope of torch's own clamp at its bounds, where black pixels are, is 1 in some versions
        and 0 in others.
        """
        above = self._above(images)
        inside = (above >= 0) & (above <= 1)
        return torch.where(inside, above, above.detach().clamp(0, 1)).flatten(1, 2)

    def _above(self, images: Tensor) -> Tensor:
        """x - k / levels; (n, C, levels, H, W)."""
        levels = torch.arange(self.levels, device=images.device, dtype=images.dtype) / self.levels
        return images[:, :, None] - levels[:, None, None]


class Thermometer(Defense[ThermometerParams]):
    """Thermometer encoding, with a network of its own trained on the code; blocks gradients."""

    Params = ThermometerParams
    version = 2
    needs = frozenset({Need.TRAINING_DATA})
    gradients = ("full", "bpda")
    card = Card(
        paper="Buckman et al., ICLR 2018; broken by Athalye et al., ICML 2018, arXiv 1802.00420",
        note="the network behind the code is trained from scratch, so its base is not the given "
        "classifier; without adversarial "
        "training",
        truth="0 % (BPDA, CIFAR-10, Linf 0.031), 30 % when also trained adversarially (Athalye "
        "et al. 2018)",
        expected="unknown",
        surrogate="min(max(x - k / levels, 0), 1) in each channel",
        attacks=("bpda", "pgd", "ensemble:fast,gradient=bpda", "transfer:base"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """A new network, trained on encoded training images; the given classifier is not used."""
        images, labels = access.training_data()
        device = device_of(classifier)
        levels, classes = self.params.levels, classifier.num_classes
        network = build(self.params.arch, classes, images.shape[1] * levels, noise.seed("network"))
        defended = Encoded(Classifier(network, classes), levels).to(device)
        recipe = Recipe(epochs=self.params.epochs, batch=64, rate=0.1)
        fit(defended, images.to(device), labels.to(device), recipe, seed=noise.seed("training"))
        return defended
