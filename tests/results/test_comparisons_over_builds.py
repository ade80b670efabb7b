"""Statistics over builds: paired tests and intervals that count builds and images."""

import math

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as reference

from bench.results.comparisons import gap_over_builds, mcnemar, mean_over_builds
from bench.results.estimate import Estimate
from bench.results.intervals import share

GENERATOR = np.random.Generator(np.random.Philox(0))


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 1), (10, 2), (7, 7)])
def test_mcnemar_is_exact(lost, won):
    a = np.repeat([True, False, True, False], [lost, won, 20, 9])
    b = np.repeat([False, True, True, False], [lost, won, 20, 9])
    assert mcnemar(a, b) == pytest.approx(reference([[20, lost], [won, 9]], exact=True).pvalue)
    assert mcnemar(a, b) == mcnemar(b, a)


def test_verdicts_on_other_images_are_refused():
    with pytest.raises(ValueError, match="not of the same images"):
        mcnemar(np.ones(2, bool), np.ones(3, bool))
    with pytest.raises(ValueError, match="not of the same builds"):
        gap_over_builds(np.ones((2, 3)), np.ones((1, 3)))


def test_equal_builds_leave_the_images_interval():
    one = np.repeat([1.0, 0.0], [30, 70])
    mean, over_images = mean_over_builds(np.stack([one] * 3)), share(one)
    assert mean.value == pytest.approx(0.3)
    assert (mean.low, mean.high) == pytest.approx((over_images.low, over_images.high), abs=0.01)
    assert mean.low <= over_images.low and mean.high >= over_images.high
    never = mean_over_builds(np.zeros((3, 100)))
    assert (never.value, never.low, never.high) == (0, 0, share(np.zeros(100)).high)


def test_builds_that_differ_widen_the_interval():
    """Each build is all right or all wrong, so only builds vary: Student's interval of eight
    numbers.
    """
    scores = np.repeat([[1.0], [0.0]], 4, axis=0) * np.ones((8, 500))
    mean = mean_over_builds(scores)
    error = scores.mean(axis=1).std(ddof=1) / math.sqrt(8)
    assert mean.high - mean.low == pytest.approx(2 * 2.3646 * error, rel=0.1)
    # The difference between two such defenses is as uncertain, although within each pair of builds
    # all images agree.
    gap = gap_over_builds(scores, np.where(np.arange(500) < 250, 1.0, 0.0) * np.ones((8, 1)))
    assert gap.high - gap.low >= mean.high - mean.low - 0.02


def test_a_difference_is_paired():
    """Images decide, and the second defense loses the same twentieth everywhere: the interval is
    that of the twentieth.
    """
    one = np.stack([(GENERATOR.random(400) < 0.5).astype(float)] * 3)
    other = one * (np.arange(400) >= 20)
    gap = gap_over_builds(other, one)
    assert gap.low < gap.value < gap.high < 0 and gap.high - gap.low < 0.06
    assert gap_over_builds(one, one) == Estimate(0, 0, 0)
    flat = gap_over_builds(np.zeros((3, 400)), np.zeros((3, 400)))
    assert flat.value == 0 and -0.02 < flat.low < 0 < flat.high < 0.02


def test_intervals_hold_what_they_say():
    """Three builds whose accuracies scatter by 5 points around 0.5; resampled as they are, they
    hold it in four of five cases.
    """
    held = 0
    for trial in range(150):
        generator = np.random.Generator(np.random.Philox(trial))
        accuracy = 0.5 + 0.05 * generator.normal(size=(3, 1))
        scores = (generator.random((3, 1000)) < accuracy).astype(float)
        mean = mean_over_builds(scores, resamples=400, seed=trial)
        held += mean.low <= 0.5 <= mean.high
    assert held >= 0.92 * 150
