"""The collapse rule: is accuracy bought by answering one class?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.results.arrays import Ints
from bench.results.class_scores import constant_accuracy, tally
from bench.results.estimate import Estimate
from bench.results.intervals import MIN_IMAGES, class_estimates, wilson

IMAGES_PER_CLASS = 10
"""How many images a class on average it takes before scores over classes are a sign."""

_ROUNDING = 1e-9  # differences such as 0.35 - 0.34 must not fall on the wrong side of one point


@dataclass(frozen=True)
class Collapse:
    """Whether a classifier answers (almost) the same class whatever it sees, and the numbers that
    tell.

    Attributes:
        verdict: True where at least one sign of collapse was found.
        reason: the signs, joined by semicolons; empty where there is none.
        largest_predicted_share: share of all answers that name the most predicted class; a NaN
            output names none.
        balanced_accuracy: with its interval.
        macro_f1: with its interval.
        constant_accuracy: accuracy of the best constant predictor.
    """

    verdict: bool
    reason: str
    largest_predicted_share: float
    balanced_accuracy: Estimate
    macro_f1: Estimate
    constant_accuracy: float


def collapsed(labels: Ints, predictions: Ints, K: int, robust: float | None) -> Collapse:
    """Judge whether accuracy is bought by answering one class.

    Any of these is a sign:

    - one class gets at least 95 % of the answers;
    - accuracy is within half a point of the best constant predictor's, with at least 90 % of the
      answers in one class;
    - macro-F1 is below chance, 1/K, which answers at random reach;
    - the lower bound of balanced accuracy does not exceed chance by two points;
    - a gradient attack takes less than one point although macro-F1 is poor.

    Little data must not look like collapse:

    - below 50 images nothing is a sign, and the last three are none below 10 images a class;
    - that a class gets at least 95 % of the answers counts where this is surely more than its share
      of the labels (by Wilson's lower bound). Where at least 95 % of the labels are of that class,
      a perfect classifier would answer it as often, and scores over classes have to tell. Where all
      labels are of that class, nothing can.

    Args:
        labels: (n,) in [0, K).
        predictions: answers to the clean images, (n,) or (n, draws), in [-1, K).
        K: number of classes.
        robust: accuracy in [0, 1] under a gradient attack, None where none was run.
    """
    counts = tally(labels, predictions, K)
    balanced, f1 = class_estimates(labels, predictions, K)
    accuracy = float(counts[0].sum() / counts[1].sum())
    signs: list[str] = []
    if len(labels) >= MIN_IMAGES:
        signs += _share_signs(counts, accuracy, len(labels))
    if len(labels) >= max(MIN_IMAGES, IMAGES_PER_CLASS * K):
        signs += [
            *_chance_signs(balanced, f1, K),
            *_unmoved_sign(accuracy, robust, f1.value, K),
        ]
    constant = constant_accuracy(labels, K)
    return Collapse(
        bool(signs), "; ".join(signs), _largest_share(counts)[1], balanced, f1, constant
    )


def _largest_share(counts: npt.NDArray[np.int64]) -> tuple[int, float]:
    """The most predicted class and its share of all answers."""
    _, support, given = counts
    return int(given.argmax()), float(given.max() / support.sum())


def _share_signs(counts: npt.NDArray[np.int64], accuracy: float, n: int) -> Iterator[str]:
    top, share = _largest_share(counts)
    label_shares = counts[1] / counts[1].sum()
    if label_shares[top] >= 0.95:
        return
    if share >= 0.95 and wilson(share * n, n).low > label_shares[top]:
        yield (
            f"class {top} gets {share:.1%} of the answers and is {label_shares[top]:.1%} of the "
            "labels"
        )
    constant = float(label_shares.max())
    if abs(accuracy - constant) <= 0.005 + _ROUNDING and share >= 0.9:
        yield (
            f"accuracy {accuracy:.2%} is that of a constant answer, {constant:.2%}, and class "
            f"{top} gets {share:.1%}"
        )


def _chance_signs(balanced: Estimate, f1: Estimate, K: int) -> Iterator[str]:
    if f1.value < 1 / K - _ROUNDING:
        yield f"macro-F1 {f1.value:.1%} is below chance ({1 / K:.1%})"
    if balanced.low <= 1 / K + 0.02 + _ROUNDING:
        bound = f"balanced accuracy {balanced.value:.1%} may be as low as {balanced.low:.1%}"
        yield f"{bound}, not two points above chance ({1 / K:.1%})"


def _unmoved_sign(accuracy: float, robust: float | None, f1: float, K: int) -> Iterator[str]:
    # 2/K is twice what a constant answer can reach. For two classes that would be 1, which every
    # classifier is under: there the limit lies half way between the constant answer and the perfect
    # one (for K = 3 the two rules agree).
    limit = min(2 / K, (1 + 1 / K) / 2)
    if robust is not None and accuracy - robust < 0.01 - _ROUNDING and f1 < limit:
        yield (
            f"a gradient attack takes {accuracy - robust:.2%}, under one point, with macro-F1 "
            f"{f1:.1%} < {limit:.1%}"
        )
