"""Logits times a constant: the cross-entropy underflows."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from bench.defense import Card, DataAccess, DefendedClassifier, Defense
from bench.noise import BuildNoise
from bench.spec import Params
from bench_defenses.gallery.outputs import OutputTransform


class TemperatureParams(Params):
    """Parameters of `temperature`."""

    t: float = Field(1000.0, gt=0, le=1e6, description="factor of the logits")


class Scaled(OutputTransform):
    """Logits times t."""

    gradients = ("full",)

    def __init__(self, classifier: DefendedClassifier, t: float) -> None:
        super().__init__(classifier)
        self.t = t

    def transform(self, logits: Tensor) -> Tensor:
        """t * logits."""
        return self.t * logits


class Temperature(Defense[TemperatureParams]):
    """Logits times a constant: the cross-entropy's gradient underflows, the decisions stay."""

    Params = TemperatureParams
    card = Card(
        paper="Papernot et al., IEEE S&P 2016, arXiv 1511.04508, at its heart; broken by Carlini "
        "and Wagner, IEEE S&P 2017, arXiv 1608.04644",
        note="the decisions are the classifier's own, so any loss that does not saturate, such "
        "as the margin, sees through it",
        truth="the base's own robust accuracy, exactly: no decision changes",
        expected="base",
        attacks=("pgd:loss=margin", "pgd", "ensemble:fast", "transfer:base"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The classifier with scaled logits."""
        return Scaled(classifier, self.params.t)
