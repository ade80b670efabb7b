"""Verdicts and labels by hand."""

import numpy as np
import numpy.typing as npt

from bench.results.arrays import Bools, Ints
from bench.results.outcomes import Outcomes

DERMA = [66, 103, 220, 23, 223, 1341, 29]


def labels_of(counts: list[int]) -> Ints:
    return np.repeat(np.arange(len(counts)), counts)


def constant(labels: Ints, answer: int) -> Ints:
    return np.full((len(labels), 1), answer)


def matrix(*rows: str) -> Bools:
    """Verdicts from rows such as 110."""
    return np.array([[mark == "1" for mark in row] for row in rows])


def mean(scores: npt.NDArray[np.float64]) -> float:
    return float(scores.mean())


def outcomes_of(correct: Bools) -> Outcomes:
    """Clean predictions (n, draws) of two classes that are right where `correct` says so."""
    labels = np.arange(len(correct)) % 2
    answers = np.where(correct, labels[:, None], 1 - labels[:, None])
    return Outcomes.of(2, np.arange(len(correct)), labels, answers, answers, answers[:, :0])
