"""Scores that count every class alike: macro-F1 and balanced accuracy, from counts by class.

Predictions are class numbers in [0, K), or `NO_CLASS` where the output was NaN: such an answer is
never right.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.results.arrays import Floats, Ints, Numbers

NO_CLASS = -1
"""The prediction that stands for a NaN output."""


def tally(labels: Ints, predictions: Ints, K: int) -> npt.NDArray[np.int64]:
    """Counts by class: labels [0, 0, 1] with predictions [0, 1, 1] give [[1, 1], [2, 1], [1, 2]].

    A table of label against prediction would be K times as large, and no score here needs it.

    Args:
        labels: (n,) in [0, K).
        predictions: (n,) or (n, draws), in [-1, K); all draws are pooled.
        K: number of classes.

    Returns:
        int64 (3, K): for each class the answers that name it rightly, the answers that should
        name it, and the answers that do name it. `NO_CLASS` names none.
    """
    drawn = drawn_predictions(labels, predictions, K)
    counts, answers = raised_counts(answer_codes(labels, drawn, K).ravel(), K)
    return np.bincount(counts[answers >= 0], minlength=3 * K).reshape(3, K)


def drawn_predictions(labels: Ints, predictions: Ints, K: int) -> Ints:
    """The predictions as (n, draws). Raises `ValueError` where anything is out of range."""
    drawn = predictions[:, None] if predictions.ndim == 1 else predictions
    if labels.ndim != 1 or drawn.ndim != 2 or len(drawn) != len(labels) or drawn.size == 0:
        raise ValueError(
            f"labels {labels.shape} and predictions {predictions.shape} must be (n,) and (n, "
            "draws), not empty"
        )
    if labels.min() < 0 or labels.max() >= K or drawn.min() < NO_CLASS or drawn.max() >= K:
        raise ValueError(
            f"with {K} classes, labels must be in [0, {K}) and predictions in [-1, {K})"
        )
    return drawn


def answer_codes(labels: Ints, drawn: Ints, K: int) -> npt.NDArray[np.int64]:
    """Label and prediction of each (image, draw) as one number, label (K + 1) + prediction, where
    `NO_CLASS` counts as K: (n, draws).
    """
    columns = np.where(drawn == NO_CLASS, K, drawn).astype(np.int64)
    return labels[:, None].astype(np.int64) * (K + 1) + columns


def raised_counts(
    codes: npt.NDArray[np.int64], K: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which counts of a tally the answers raise.

    Args:
        codes: of m answers, as `answer_codes` makes them, (m,).
        K: number of classes.

    Returns:
        Indices into a flat (3, K) tally, (3 m,), and for each the answer in [0, m) that raises the
        count; -1 where none does.
    """
    labels, given = np.divmod(codes, K + 1)
    right, answered = labels == given, given < K
    answers = np.arange(len(codes))
    counts = np.concatenate([labels, K + labels, 2 * K + np.where(answered, given, 0)])
    return counts, np.concatenate(
        [np.where(right, answers, -1), answers, np.where(answered, answers, -1)]
    )


def macro_f1(tallies: Numbers) -> Floats:
    """Mean of the F1 score 2TP/(2TP+FP+FN) over the classes that have support; 0 for such a class
    that is never predicted.

    The constant predictor of a class with share p gets 2p/(K(1+p)) where all K classes have
    support.

    Args:
        tallies: counts (..., 3, K), as `tally` makes them.

    Returns:
        (...) in [0, 1].
    """
    right, support, given = np.moveaxis(tallies, -2, 0)
    return _mean_over_supported(2 * right / np.maximum(support + given, 1), support)


def balanced_accuracy(tallies: Numbers) -> Floats:
    """Mean recall over the classes that have support: (..., 3, K) counts to (...) in [0, 1]."""
    right, support, _ = np.moveaxis(tallies, -2, 0)
    return _mean_over_supported(right / np.maximum(support, 1), support)


def _mean_over_supported(scores: Floats, support: Numbers) -> Floats:
    """Mean over the last axis where `support` is positive; scores elsewhere must not count,
    whatever they are.
    """
    has_support = support > 0
    mean: Floats = (scores * has_support).sum(axis=-1) / has_support.sum(axis=-1)
    return mean


def constant_accuracy(labels: Ints, K: int) -> float:
    """The accuracy of the best constant predictor, which is the share of the largest class; labels
    (n,) in [0, K).
    """
    if labels.size == 0:
        raise ValueError("no labels: a share needs at least one image")
    return float(np.bincount(labels, minlength=K).max() / len(labels))
