"""Stochastic activation pruning."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bench.defense import BuildSetting, Card, DataAccess, DefendedClassifier, Defense
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import BuildNoise, Noise
from bench.spec import Params
from bench_defenses.gallery.activations import Activation, ActivationSwap


class SAPParams(Params):
    """Parameters of `sap`."""

    samples: float = Field(
        1.0, gt=0, le=100, description="draws over number of activations, in each layer"
    )


_ONE_PASS = (
    "sap needs a classifier that runs its batch in one pass: use one that draws no numbers of its "
    "own"
)


class Pruned(ActivationSwap):
    """After every activation, what is drawn stays, scaled so that the mean over draws is as
    before.
    """

    stochastic = True

    def __init__(self, classifier: DefendedClassifier, samples: float) -> None:
        super().__init__(classifier)
        self.samples = samples

    def activate(self, inputs: Tensor, original: Activation, noise: Noise, gradient: str) -> Tensor:
        """The activations (n, ...), pruned."""
        outputs = original(inputs)
        if len(outputs) != len(noise):
            raise BadInput(_ONE_PASS)
        return prune(outputs, max(1, round(self.samples * outputs[0].numel())), noise)


def prune(activations: Tensor, draws: int, noise: Noise) -> Tensor:
    """Keep each activation with the probability 1 - (1 - |a_j| / sum |a|)^r that one of r draws
    hits it, divided by that probability, and put 0 for the others (Dhillon et al. 2018, algorithm
    1, with the r draws of a layer made independent).

    Args:
        activations: (n, ...).
        draws: r.
        noise: one row an image.
    """
    weight = activations.detach().flatten(1).abs()
    share = weight / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    # Dhillon et al. 2018, algorithm 1: 1 - (1 - p_j)^r, p_j the share of |a_j|.
    probability = -torch.expm1(draws * torch.log1p(-share.clamp_max(1)))
    kept = noise.uniform("kept", tuple(weight.shape[1:])) < probability
    # A constant for the gradient, whose mean over draws is then near that of the classifier without
    # pruning.
    factor = torch.where(kept, 1 / probability, 0.0)
    return activations * factor.reshape(activations.shape)


class SAP(Defense[SAPParams]):
    """Stochastic activation pruning; random inside the network, no retraining."""

    Params = SAPParams
    stochastic = True
    card = Card(
        paper="Dhillon et al., ICLR 2018, arXiv 1803.01442; broken by Athalye et al., ICML 2018, "
        "arXiv 1802.00420",
        note="samples=1 is the paper's SAP-100; the noise of a gradient averages out over the "
        "steps or over draws",
        truth="0 % (EOT, CIFAR-10, Linf 0.031; Athalye et al. 2018)",
        expected="base",
        attacks=("pgd:randomness=(eot:k=5)", "pgd", "em", "ensemble:fast", "transfer:base"),
    )

    def check(self, setting: BuildSetting) -> None:
        """Raise `BadInput` for a classifier that runs its images one by one."""
        if isinstance(setting.classifier, Classifier) and setting.classifier.stochastic:
            raise BadInput(_ONE_PASS)

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The classifier with pruned activations."""
        return Pruned(classifier, self.params.samples)
