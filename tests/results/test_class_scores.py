"""Counts by class and the scores made of them, against known answers and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from bench.results.class_scores import (
    NO_CLASS,
    balanced_accuracy,
    constant_accuracy,
    leave_one_out,
    macro_f1,
    tally,
)
from tests.results.helpers import DERMA, constant, labels_of

BLOOD = [244, 624, 311, 579, 243, 284, 666, 470]


def test_tally_counts_right_expected_and_given_answers_and_gives_nan_to_no_class() -> None:
    counts = tally(np.array([0, 0, 1, 2]), np.array([0, NO_CLASS, 2, 2]), 3)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 0, 1], [2, 1, 1], [1, 0, 2]]


def test_tally_pools_draws() -> None:
    counts = tally(
        np.array([1, 0], dtype=np.uint8), np.array([[1, 1, 0], [0, -1, -1]], dtype=np.int8), 2
    )
    assert counts.tolist() == [[1, 2], [3, 3], [2, 2]]


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        ([0, 3], [0, 0]),
        ([-1, 0], [0, 0]),
        ([0, 0], [0, 3]),
        ([0, 0], [0, -2]),
        ([0], [0, 1]),
        ([], []),
    ],
)
def test_tally_refuses_what_is_out_of_range(labels: list[int], predictions: list[int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        tally(np.array(labels, dtype=int), np.array(predictions, dtype=int), 3)


def test_macro_f1_of_a_constant_predictor() -> None:
    labels = labels_of([90, 10])
    assert macro_f1(tally(labels, constant(labels, 0), 2)) == pytest.approx(0.4737, abs=5e-5)


@pytest.mark.parametrize("counts", [DERMA, BLOOD, [5, 5], [1, 2, 3, 4, 90]])
def test_floors_of_the_best_constant_predictor(counts: list[int]) -> None:
    labels, K = labels_of(counts), len(counts)
    table, share = (
        tally(labels, constant(labels, int(np.argmax(counts))), K),
        max(counts) / sum(counts),
    )
    assert macro_f1(table) == pytest.approx(2 * share / (K * (1 + share)))
    assert balanced_accuracy(table) == pytest.approx(1 / K)
    assert constant_accuracy(labels, K) == share


@pytest.mark.parametrize("seed", range(20))
def test_scores_agree_with_sklearn_also_with_missing_classes_and_nan_outputs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 2, 3, 5], size=40)
    predictions = np.where(rng.random(40) < 0.5, labels, rng.integers(-1, 6, 40))
    table = tally(labels, predictions, 6)
    present = np.unique(labels)
    expected = f1_score(labels, predictions, labels=present, average="macro", zero_division=0)
    assert macro_f1(table) == pytest.approx(expected)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert balanced_accuracy(table) == pytest.approx(
            balanced_accuracy_score(labels, predictions)
        )


def test_scores_work_over_leading_axes() -> None:
    tables = np.random.default_rng(0).integers(0, 9, (3, 4, 3, 6))
    for score in (macro_f1, balanced_accuracy):
        together = score(tables)
        assert together.shape == (3, 4)
        assert together[2, 1] == score(tables[2, 1]) != score(tables[1, 2])


def test_constant_accuracy() -> None:
    assert constant_accuracy(labels_of(DERMA), 7) == pytest.approx(0.6688, abs=5e-5)
    with pytest.raises(ValueError, match="no labels"):
        constant_accuracy(np.array([], dtype=int), 7)


@pytest.mark.parametrize(("K", "draws"), [(2, 1), (6, 1), (6, 4)])
def test_leaving_out_an_image_is_tallying_without_it(K: int, draws: int) -> None:
    """Class 1 has a single image, which drops out with it; NaN outputs name no class."""
    rng = np.random.default_rng(K + draws)
    labels = np.array([1, *rng.choice([0, K - 1] if K > 2 else [0], size=29)])
    right = rng.random((30, draws)) < 0.5
    predictions = np.where(right, labels[:, None], rng.integers(-1, K, (30, draws)))
    balanced, f1 = leave_one_out(labels, predictions, K)
    for i in range(30):
        counts = tally(np.delete(labels, i), np.delete(predictions, i, axis=0), K)
        assert balanced[i] == pytest.approx(balanced_accuracy(counts), abs=1e-12)
        assert f1[i] == pytest.approx(macro_f1(counts), abs=1e-12)
    with pytest.raises(ValueError, match="two images"):
        leave_one_out(labels[:1], predictions[:1], K)
