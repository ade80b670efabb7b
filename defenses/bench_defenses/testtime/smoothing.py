"""Randomized smoothing: a vote over Gaussian noise on the image."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bench.defense import (
    Card,
    DataAccess,
    DefendedClassifier,
    Defense,
    Forward,
    GaussianVote,
)
from bench.noise import BuildNoise, Noise
from bench.spec import Params
from bench_defenses.ensemble import OneAnswer

STAGE = "noise"

_BELOW_ONE = 0.99


class SmoothingParams(Params):
    """Parameters of `smoothing`."""

    sigma: float = Field(
        0.1, gt=0, le=10, description="standard deviation, in pixel units of [0, 1]"
    )
    draws: int = Field(20, ge=1, le=100_000, description="draws that vote on an answer")


class VotingUnderNoise(OneAnswer):
    """The class that most of several draws of Gaussian noise are answered with.

    The logits are log((votes_k + p_k) / (draws + 1)), with p 0.99 times the mean softmax over the
    draws. It lies below 1, so the largest logit is the vote, and p decides between equal ones.
    Votes stand still nearly everywhere: the gradient is that of p, the function that Salman et al.
    2019 (arXiv 1906.04584, eq. 5) attack in the vote's place.
    """

    def __init__(self, classifier: DefendedClassifier, params: SmoothingParams) -> None:
        super().__init__(classifier, params.draws)
        self.sigma = params.sigma

    def answer(self, inner: Forward, images: Tensor, noise: Noise) -> Tensor:
        """The vote as logits."""
        votes = torch.zeros(len(images), self.num_classes, device=images.device)
        answers = []
        for i in range(self.draws):
            draw = noise.stage(STAGE).at(str(i))
            moved = images + self.sigma * draw.normal("gauss", tuple(images.shape[1:]))
            logits = inner(moved, draw.at("classifier"))
            votes = votes + F.one_hot(logits.argmax(1), self.num_classes)
            answers.append(logits.log_softmax(1))
        # Rounding may not lift p to 1, and in the logarithm no p is lost for being small.
        mean = torch.stack(answers).logsumexp(0) + math.log(_BELOW_ONE / self.draws)
        return torch.logaddexp(votes.log(), mean) - math.log(self.draws + 1)

    def gaussian_vote(self) -> GaussianVote:
        """One draw's answer, without its noise."""
        return GaussianVote(self.sigma, self.inner("full", "logits"))


class Smoothing(Defense[SmoothingParams]):
    """A vote over Gaussian noise on the image, which `bench certify` can bound from below; of a
    classifier as it comes.
    """

    Params = SmoothingParams
    builds = VotingUnderNoise
    stages = (STAGE,)
    seeded = False
    card = Card(
        paper="Cohen, Rosenfeld, Kolter, ICML 2019, arXiv 1902.02918; attacked by Salman et al., "
        "NeurIPS 2019, arXiv 1906.04584",
        note="certificates (`bench certify`) speak of the vote of infinitely many draws, which few "
        "draws only estimate; a classifier that was not trained under noise pays for it in clean "
        "accuracy and radius",
        attacks=("pgd", "pgd+eot", "pgd+replay", "em"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The vote around the classifier."""
        return VotingUnderNoise(classifier, self.params)
