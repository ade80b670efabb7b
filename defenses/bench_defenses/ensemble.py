"""Several draws of a random defense as one answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.defense import DefendedClassifier, Forward, Wrapper
from bench.errors import BadInput
from bench.noise import Noise


class Ensemble(Wrapper):
    """The log of the mean softmax over several draws of a stochastic classifier.

    Args:
        classifier: what is asked several times.
        draws: how often.
        site: where its i-th draw takes its noise: `site/i`.
    """

    stochastic = True

    def __init__(self, classifier: DefendedClassifier, draws: int, site: str) -> None:
        super().__init__(classifier)
        self.draws = draws
        self.site = site

    def views(self) -> tuple[str, ...]:
        """The answer alone."""
        return ("logits",)

    def forward_pass(self, gradient: str = "full", view: str = "logits") -> Forward:
        """The gradients of what is asked."""
        if view != "logits":
            raise BadInput(f"unknown view {view!r}: this classifier offers logits")
        inner = self.inner(gradient, view)

        def run(images: Tensor, noise: Noise) -> Tensor:
            # One draw a pass, so that the batch is never larger than it was asked to be.
            answers = [
                inner(images, noise.at(self.site).at(str(i))).log_softmax(1)
                for i in range(self.draws)
            ]
            return torch.stack(answers).logsumexp(0) - math.log(self.draws)

        return run
