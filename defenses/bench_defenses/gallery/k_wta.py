"""k-winners-take-all: an activation that jumps."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, Need, straight_through
from bench.models.recipes import Recipe
from bench.models.training import device_of, fit
from bench.noise import BuildNoise, Noise
from bench.spec import Params
from bench_defenses.gallery.activations import Activation, ActivationSwap


class KWTAParams(Params):
    """Parameters of `k-wta`."""

    gamma: float = Field(0.1, gt=0, le=1, description="share of a layer's activations that stay")
    epochs: int = Field(
        2, ge=0, le=1000, description="passes over the training images after the exchange"
    )


class Winners(ActivationSwap):
    """Every activation replaced by k-winners-take-all."""

    gradients = ("full", "bpda")

    def __init__(self, classifier: DefendedClassifier, gamma: float) -> None:
        super().__init__(classifier)
        self.gamma = gamma

    def activate(self, inputs: Tensor, original: Activation, noise: Noise, gradient: str) -> Tensor:
        """The winners; under `bpda` with the original activation's gradient."""
        if gradient == "bpda":
            return straight_through(winners(inputs, self.gamma), original(inputs))
        return winners(inputs, self.gamma)


def winners(inputs: Tensor, gamma: float) -> Tensor:
    """Xiao et al. 2020, equation 1: of each row of (n, ...) the k = gamma * d largest values, 0
    elsewhere; ties all stay.
    """
    flat = inputs.flatten(1)
    k = max(1, int(gamma * flat.shape[1]))
    threshold = flat.detach().topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    return (flat * (flat >= threshold)).reshape(inputs.shape)


class KWTA(Defense[KWTAParams]):
    """k-winners-take-all activations: deterministic, with a gradient that jumps."""

    Params = KWTAParams
    needs = frozenset({Need.TRAINING_DATA})
    gradients = ("full", "bpda")
    card = Card(
        paper="Xiao et al., ICLR 2020, arXiv 1905.10510; broken by Tramer et al., NeurIPS 2020, "
        "arXiv 2002.08347",
        note="its gradient changes from step to step, which leads PGD astray where eps is "
        "small; two epochs on training data make up for "
        "what the exchange costs",
        truth="none without adversarial training; of the published adversarially trained net "
        "(CIFAR-10, Linf 8/255) an attack on "
        "smoothed margins leaves 0.16 % (RobustBench, Xiao2020Enhancing)",
        expected="unknown",
        surrogate="the activation that was replaced",
        attacks=(
            "pgd:loss=margin,restarts=5",
            "bpda",
            "pgd",
            "ensemble:fast",
            "apgd-t",
            "transfer:base",
        ),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The classifier with its activations exchanged, then trained a little further."""
        defended = Winners(classifier, self.params.gamma)
        if self.params.epochs:
            images, labels = (part.to(device_of(classifier)) for part in access.training_data())
            # Small steps: the weights are good but for the exchange.
            recipe = Recipe(epochs=self.params.epochs, batch=64, rate=0.01)
            fit(defended, images, labels, recipe, seed=noise.seed("training"))
        return defended
