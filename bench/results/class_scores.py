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
    right = (drawn == labels[:, None]).sum(axis=1)
    counts = [
        np.bincount(labels, weights=right, minlength=K),
        np.bincount(labels, minlength=K) * drawn.shape[1],
        np.bincount(drawn[drawn != NO_CLASS], minlength=K),
    ]
    return np.stack(counts).astype(np.int64)


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
    counts = np.moveaxis(tallies, -2, 0)
    return _mean_over_supported(_f1(counts), counts[1])


def balanced_accuracy(tallies: Numbers) -> Floats:
    """Mean recall over the classes that have support: (..., 3, K) counts to (...) in [0, 1]."""
    counts = np.moveaxis(tallies, -2, 0)
    return _mean_over_supported(_recall(counts), counts[1])


def leave_one_out(labels: Ints, predictions: Ints, K: int) -> tuple[Floats, Floats]:
    """Balanced accuracy and macro-F1 without each image in turn, (n,) each; arguments as `tally`.

    An image counts in its own class and in those that its draws name, so only their scores are
    computed anew.
    """
    counts = tally(labels, predictions, K)
    supported = int((counts[1] > 0).sum())
    if supported == 0 or len(labels) < 2:
        raise ValueError("leaving out an image takes two images at least")
    images, classes, mine = _contributions(labels, drawn_predictions(labels, predictions, K), K)
    before = counts[:, classes]
    after = before - mine
    lost = np.bincount(images, (before[1] > 0) & (after[1] == 0), minlength=len(labels))
    scores = []
    for score in (_recall, _f1):
        change = np.bincount(images, score(after) - score(before), minlength=len(labels))
        scores.append((score(counts).sum() + change) / (supported - lost))
    return scores[0], scores[1]


def _contributions(labels: Ints, drawn: Ints, K: int) -> tuple[Ints, Ints, npt.NDArray[np.int64]]:
    """What each image adds to the tally: images (m,), classes (m,), and counts (3, m)."""
    n, draws = drawn.shape
    given = np.arange(n)[:, None] * K + drawn
    own = np.arange(n) * K + labels
    given = given[drawn != NO_CLASS]
    places = np.unique(np.concatenate([given, own]))
    images, classes = np.divmod(places, K)
    is_own = labels[images] == classes
    answers = np.bincount(np.searchsorted(places, given), minlength=len(places))
    return images, classes, np.stack([answers * is_own, draws * is_own, answers])


def _f1(counts: Numbers) -> Floats:
    """2TP / (2TP + FP + FN) of each class; 0 without support. (3, ...) to (...)."""
    right, support, given = counts
    return np.asarray(2 * right / np.maximum(support + given, 1) * (support > 0), dtype=np.float64)


def _recall(counts: Numbers) -> Floats:
    """As `_f1`: TP / (TP + FN)."""
    right, support, _ = counts
    return np.asarray(right / np.maximum(support, 1), dtype=np.float64)


def _mean_over_supported(scores: Floats, support: Numbers) -> Floats:
    """Mean over the last axis where `support` is positive; `scores` are 0 elsewhere."""
    mean: Floats = scores.sum(axis=-1) / (support > 0).sum(axis=-1)
    return mean


def constant_accuracy(labels: Ints, K: int) -> float:
    """The accuracy of the best constant predictor, which is the share of the largest class; labels
    (n,) in [0, K).
    """
    if labels.size == 0:
        raise ValueError("no labels: a share needs at least one image")
    return float(np.bincount(labels, minlength=K).max() / len(labels))
