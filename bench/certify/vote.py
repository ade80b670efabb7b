"""Certificates of a vote over Gaussian noise: Cohen, Rosenfeld, Kolter 2019 (arXiv 1902.02918).

Where noise of sigma is answered with one class with a probability above p > 1/2, no image within
sigma Phi^-1(p) in L2 makes another class the most frequent answer. The probability is estimated, so
that a certificate errs with the told probability, and it speaks of infinitely many draws: the vote
of few may differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betainc, betaincinv, ndtri
from torch import Tensor

from bench.defense import GaussianVote
from bench.errors import BadInput
from bench.noise import Noise, Stream
from bench.threat import ThreatModel

_SITE, _CHOOSING, _COUNTING, _REFUTING = "certify", "choose", "count", "refute"

_CHANCE = 1e-6
"""Probability below which chance is no explanation."""

_ROWS = 200
"""Draws that are asked at once."""


@dataclass(frozen=True)
class Confidence:
    """How surely, and from how many draws, a vote is certified.

    Attributes:
        alpha: probability with which the certificate of an image may be wrong, at most.
        n0: draws that choose the class.
        n: further draws that bound its probability.
    """

    alpha: float = 0.001
    n0: int = 100
    n: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise BadInput(f"alpha is {self.alpha}: give a probability above 0 and below 0.5")
        if min(self.n0, self.n) < 1:
            raise BadInput(f"n0={self.n0} and n={self.n} draws: give at least one of each")

    @property
    def surest(self) -> float:
        """The largest lower bound that so many draws allow: alpha^(1 / n)."""
        return least_probability(self.n, self.n, self.alpha)


def least_probability(successes: int, n: int, alpha: float) -> float:
    """The one-sided lower bound of a probability at confidence 1 - alpha, 0 without any success
    (Clopper and Pearson, Biometrika 1934).
    """
    if successes == 0:
        return 0.0
    # The alpha quantile of Beta(k, n - k + 1).
    return float(betaincinv(successes, n - successes + 1, alpha))


def radius_of(probability: float, sigma: float) -> float:
    """sigma Phi^-1(p), 0 where p <= 1/2 (Cohen et al. 2019, section 3.2.2)."""
    return max(sigma * float(ndtri(probability)), 0.0)


def needed_radius(threat: ThreatModel, shape: tuple[int, ...]) -> float:
    """The radius of the smallest L2 ball that holds the threat's ball.

    Args:
        threat: its ball.
        shape: (C, H, W) of an image.
    """
    # |d|_2 <= |d|_1, and |d|_2 <= sqrt(pixels) |d|_inf.
    return threat.eps * (math.sqrt(math.prod(shape)) if threat.norm == "linf" else 1.0)


def refutes(wrong: int, tried: int, alpha: float) -> bool:
    """Whether so many certificates are found wrong that chance is no explanation: each errs with
    probability alpha, and so does its refutation.
    """
    # P(X >= wrong) for X ~ Binomial(tried, 2 alpha).
    return wrong > 0 and float(betainc(wrong, tried - wrong + 1, min(2 * alpha, 1.0))) < _CHANCE


@dataclass(frozen=True)
class Voted:
    """What became of one image.

    Attributes:
        chosen: the class that most of the n0 draws were answered with.
        successes: of the n further draws, those that were answered with it.
        radius: in L2, within which the smoothed vote stays `chosen`; 0 where it abstains.
    """

    chosen: int
    successes: int
    radius: float


@dataclass(frozen=True)
class SmoothedVote:
    """Certifies the vote of infinitely many draws.

    Attributes:
        vote: what is asked, and the noise.
        confidence: how surely.
        num_classes: number of classes K.
        root: root seed of the draws, which belong to an image's id and are apart from the judge's.
    """

    vote: GaussianVote
    confidence: Confidence
    num_classes: int
    root: int

    def certify(self, image: Tensor, image_id: int, label: int | None = None) -> Voted:
        """The answer for one image (C, H, W), with its radius (Cohen et al. 2019, procedure
        Certify).

        Where another class than `label` is chosen, no radius matters, and no more is drawn.
        """
        chosen = int(self.counts(image, image_id, _CHOOSING, self.confidence.n0).argmax())
        n = self.confidence.n
        if label is not None and chosen != label:
            return Voted(chosen, 0, 0.0)
        successes = int(self.counts(image, image_id, _COUNTING, n)[chosen])
        least = least_probability(successes, n, self.confidence.alpha)
        return Voted(chosen, successes, radius_of(least, self.vote.sigma))

    def is_wrong(self, image: Tensor, image_id: int, label: int) -> bool:
        """Whether the vote is surely not `label` for this image (C, H, W): n draws of their own
        bound the probability of all other classes from below, above 1/2.
        """
        n, alpha = self.confidence.n, self.confidence.alpha
        right = int(self.counts(image, image_id, _REFUTING, n)[label])
        return least_probability(n - right, n, alpha) > 0.5

    def counts(self, image: Tensor, image_id: int, what: str, draws: int) -> Tensor:
        """How many of the draws of this name are answered with each class: int64 (K,)."""
        counts = torch.zeros(self.num_classes, dtype=torch.int64)
        for numbers in np.array_split(np.arange(draws), math.ceil(draws / _ROWS)):
            ids = np.full(len(numbers), image_id)
            noise = Noise.of(self.root, Stream.EVAL, ids, numbers).at(_SITE).at(what)
            moved = image + self.vote.sigma * noise.normal("gauss", tuple(image.shape))
            with torch.no_grad():
                answers = self.vote.base(moved, noise.at("classifier")).argmax(1)
            counts += torch.bincount(answers, minlength=self.num_classes)
        return counts
