"""Scores of the views."""

import numpy as np
import pytest

from bench.results.outcomes import Outcomes
from bench.results.views import any_right, auroc, detection, view_scores


def test_auroc_and_rates_by_hand():
    assert auroc(np.array([3.0, 1.0]), np.array([2.0, 1.0])) == (1 + 1 + 0 + 0.5) / 4
    arrays = {
        "score/detector/clean": np.array([-1.0, 2.0, -3.0]),
        "score/detector/adversarial": np.array([1.0, 2.0, -2.0]),
        "score/base/clean": np.array([0, 1, 1]),
        "score/base/adversarial": np.array([1, 1, 0]),
        "score/corrected/clean": np.array([0, 0, 1]),
        "score/corrected/adversarial": np.array([0, 0, 0]),
        "moved": np.array([True, False, True]),
    }
    scores = view_scores(arrays, 2)
    rates = detection(scores)
    assert (rates.n, rates.true_positive_rate, rates.false_positive_rate) == (
        2,
        0.5,
        pytest.approx(1 / 3),
    )
    assert rates.auroc == pytest.approx((2 + 1) / 6 + 0)
    column = np.zeros((3, 1), dtype=np.int64)
    outcomes = Outcomes.of(2, np.arange(3), np.array([0, 1, 1]), column, column, column[:, :0])
    assert any_right(scores, outcomes).tolist() == [True, True, False]
    assert view_scores({"points": np.zeros(3)}, 2) is None


def test_without_an_attacked_image_there_is_no_rate_of_detection():
    arrays = {
        "score/detector/clean": np.array([-1.0, 0.0]),
        "score/detector/adversarial": np.array([1.0, 2.0]),
        "moved": np.array([False, False]),
    }
    rates = detection(view_scores(arrays, 2))
    assert (rates.n, rates.true_positive_rate, rates.auroc) == (0, None, None)
    assert rates.false_positive_rate == 0, "a score of 0 is no alarm"


def test_another_view_may_be_right_under_attack():
    """Of the two views one is right on the clean image, the other on the attacked one."""
    arrays = {
        "score/base/clean": np.array([1]),
        "score/base/adversarial": np.array([0]),
        "score/corrected/clean": np.array([0]),
        "score/corrected/adversarial": np.array([1]),
        "moved": np.array([True]),
    }
    column = np.zeros((1, 1), dtype=np.int64)
    outcomes = Outcomes.of(2, np.arange(1), np.array([1]), column, column, column[:, :0])
    assert any_right(view_scores(arrays, 2), outcomes).tolist() == [True]
