"""Several draws of a random defense as one answer."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from bench.defense import DefendedClassifier, Forward, Wrapper
from bench.errors import BadInput
from bench.noise import Noise


class OneAnswer(Wrapper):
    """One answer from several draws; it has no view but the answer. Subclasses write `answer`.

    Args:
        classifier: what is asked several times.
        draws: how often.
    """

    stochastic = True

    def __init__(self, classifier: DefendedClassifier, draws: int) -> None:
        super().__init__(classifier)
        self.draws = draws

    @abstractmethod
    def answer(self, inner: Forward, images: Tensor, noise: Noise) -> Tensor:
        """Logits (n, num_classes), from `draws` passes through the classifier, one draw a pass, so
        that the batch is never larger than it was asked to be.
        """

    def views(self) -> tuple[str, ...]:
        """The answer alone."""
        return ("logits",)

    def forward_pass(self, gradient: str = "full", view: str = "logits") -> Forward:
        """The gradients of what is asked."""
        if view != "logits":
            raise BadInput(f"unknown view {view!r}: this classifier offers logits")
        inner = self.inner(gradient, view)
        return lambda images, noise: self.answer(inner, images, noise)


class Ensemble(OneAnswer):
    """The log of the mean softmax over several draws of a stochastic classifier.

    Args:
        classifier, draws: as for `OneAnswer`.
        site: where its i-th draw takes its noise: `site/i`.
    """

    def __init__(self, classifier: DefendedClassifier, draws: int, site: str) -> None:
        super().__init__(classifier, draws)
        self.site = site

    def answer(self, inner: Forward, images: Tensor, noise: Noise) -> Tensor:
        """The log of the mean softmax."""
        answers = [
            inner(images, noise.at(self.site).at(str(i))).log_softmax(1) for i in range(self.draws)
        ]
        return torch.stack(answers).logsumexp(0) - math.log(self.draws)
