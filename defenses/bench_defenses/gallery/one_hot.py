"""One-hot outputs: the gradient does not exist."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, NoParams
from bench.noise import BuildNoise
from bench_defenses.gallery.outputs import OutputTransform


class Hardened(OutputTransform):
    """1 for the predicted class, 0 for the others."""

    def transform(self, logits: Tensor) -> Tensor:
        """The argmax as a one-hot row."""
        return F.one_hot(logits.argmax(1), self.num_classes).to(logits.dtype)


class OneHot(Defense[NoParams]):
    """The predicted class as a one-hot row: no score, no gradient."""

    gradients = ("full", "bpda")
    card = Card(
        note="hides scores and gradients from everyone, but the decisions are the classifier's own",
        truth="the base's own robust accuracy, exactly: no decision changes",
        expected="base",
        surrogate="the logits",
        attacks=("bpda", "pgd", "ensemble:fast,gradient=bpda", "transfer:base"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The classifier with hard outputs."""
        return Hardened(classifier)
