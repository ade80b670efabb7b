"""Comparisons on the same images and over builds, by known answers and by simulation."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar

from bench.results import comparisons, intervals
from bench.results.estimate import Estimate


def paired(
    rng: np.random.Generator, n: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scores with means 0.5 and 0.25; the second is right only where the first is."""
    fresh = rng.random(n) < 0.5
    return fresh.astype(float), (fresh & (rng.random(n) < 0.5)).astype(float)


def test_gap_and_ratio_cover_and_use_the_pairing():
    rng = np.random.default_rng(2)
    gaps = ratios = 0
    for seed in range(200):
        fresh, replay = paired(rng, 150)
        gap, ratio = (
            comparisons.gap(fresh, replay, 500, seed),
            comparisons.ratio(replay, fresh, 500, seed),
        )
        gaps += gap.low <= 0.25 <= gap.high
        ratios += ratio.low <= 0.5 <= ratio.high
    assert 0.91 * 200 <= gaps <= 0.99 * 200 and 0.91 * 200 <= ratios <= 0.99 * 200
    same = comparisons.gap(fresh, fresh)
    assert (same.low, same.value, same.high) == (0, 0, 0), "the images are the same in both"
    assert comparisons.ratio(fresh, fresh).high == 1


def test_gap_and_ratio_of_known_matrices():
    fresh, replay = np.array([1.0, 1, 1, 0, 0.5, 0.5] * 50), np.array([1.0, 0, 1, 0, 0, 0] * 50)
    gap, ratio = comparisons.gap(fresh, replay), comparisons.ratio(replay, fresh)
    assert gap.value == pytest.approx(1 / 3) and ratio.value == pytest.approx(0.5)
    sigma = (fresh - replay).std() / np.sqrt(300)
    assert [gap.low, gap.high] == pytest.approx(
        [1 / 3 - 1.96 * sigma, 1 / 3 + 1.96 * sigma], abs=0.004
    )
    assert comparisons.gap(fresh, replay) == gap, "the same images give the same interval"
    one, other = np.array([1.0, 0] * 150), np.array([0.0, 1] * 150)
    opposed = comparisons.gap(one, other)
    assert [opposed.low, opposed.high] == pytest.approx(
        [-1.96 / np.sqrt(300), 1.96 / np.sqrt(300)], abs=0.01
    )


def test_a_side_without_spread_does_not_make_an_interval_empty():
    none, half = np.zeros(100), np.array([1.0, 0] * 50)
    ratio, gap = comparisons.ratio(none, half), comparisons.gap(half, none)
    assert ratio.value == ratio.low == 0 and 0.05 < ratio.high < 0.1
    assert gap.low < intervals.share(half).low and gap.high == intervals.share(half).high
    assert comparisons.ratio(half, none) is None


def test_a_ratio_over_almost_nothing_has_no_upper_bound():
    one = np.array([1.0] + [0.0] * 99)
    ratio = comparisons.ratio(one, one[::-1].copy())
    assert ratio.value == 1 and ratio.low == 0 and ratio.high == np.inf
    twice = comparisons.ratio(np.array([1.0, 1] + [0.0] * 98), one)
    assert twice.value == 2 and twice.low == 0, "one resample in three has nothing to divide by"
    with pytest.raises(ValueError, match="same images"):
        comparisons.gap(one, one[:50])


@pytest.mark.parametrize(
    ("values", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.9, 0.8], [1.0, 1.0]),
    ],
)
def test_holm(values, adjusted):
    """The second line by hand: 0.01 times 3, then 0.03 times 2, then no less than that."""
    assert comparisons.holm(values) == pytest.approx(adjusted)


@pytest.mark.parametrize("resamples", [2, 3, 41, 42, 200, 201])
def test_bounds_of_a_ratio_are_attained_ratios_on_the_outer_side(resamples):
    """The 2.5 % and 97.5 % points of the sorted ratios, rounded outwards to one that occurred: with
    42 resamples the second lowest and the second highest, with 41 likewise, exactly.
    """
    rng = np.random.default_rng(4)
    a, b = rng.random(30).round(1), 0.2 + 0.8 * rng.random(30).round(1)
    pairs, sizes = np.unique(np.stack([a, b], axis=1), axis=0, return_counts=True)
    (times,) = intervals.resampled_counts(sizes, resamples, 7, len(pairs))
    above, below = (times @ pairs).T
    ratios = np.sort(above / below)
    assert len(set(ratios)) > resamples / 2
    outer = math.floor(0.025 * (resamples - 1))
    bounds = comparisons.ratio(a, b, resamples, 7)
    assert (bounds.low, bounds.high) == pytest.approx((ratios[outer], ratios[-1 - outer]))
    assert bounds.value == pytest.approx(a.mean() / b.mean())


def test_a_resample_without_anything_below_the_line_is_zero_for_the_lower_bound():
    """Of three resamples one has nothing to divide by: it is the lowest and the highest ratio."""
    one = np.array([1.0] + [0.0] * 2)
    for seed in range(50):
        (times,) = intervals.resampled_counts(np.array([2, 1]), 3, seed, 2)
        if sorted(times[:, 1] > 0) == [False, True, True]:
            bounds = comparisons.ratio(one, one, 3, seed)
            assert (bounds.low, bounds.value, bounds.high) == (0, 1, np.inf)
            return
    raise AssertionError("no seed draws such resamples")


def test_a_gap_has_the_percentile_interval_of_its_resamples():
    rng = np.random.default_rng(5)
    a, b = rng.random(30).round(1), rng.random(30).round(1)
    pairs, sizes = np.unique(np.stack([a, b], axis=1), axis=0, return_counts=True)
    (times,) = intervals.resampled_counts(sizes, 500, 3, len(pairs))
    means = times @ pairs / 30
    gap = comparisons.gap(a, b, 500, 3)
    assert (gap.low, gap.high) == pytest.approx(
        tuple(np.quantile(means[:, 0] - means[:, 1], (0.025, 0.975)))
    )


# Over builds --------------------------------------------------------------------------------------


def test_builds_and_images_that_all_agree_leave_wilsons_interval():
    for score in (0.0, 1.0):
        scores = np.full((3, 50), score)
        assert comparisons.mean_over_builds(scores) == intervals.share(scores[0])


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 1), (10, 2), (7, 7)])
def test_mcnemar_is_exact(lost, won):
    a = np.repeat([True, False, True, False], [lost, won, 20, 9])
    b = np.repeat([False, True, True, False], [lost, won, 20, 9])
    exact = exact_mcnemar([[20, lost], [won, 9]], exact=True).pvalue
    assert comparisons.mcnemar(a, b) == pytest.approx(exact)
    assert comparisons.mcnemar(a, b) == comparisons.mcnemar(b, a)


def test_verdicts_on_other_images_are_refused():
    with pytest.raises(ValueError, match="not of the same images"):
        comparisons.mcnemar(np.ones(2, bool), np.ones(3, bool))
    with pytest.raises(ValueError, match="not of the same builds"):
        comparisons.gap_over_builds(np.ones((2, 3)), np.ones((1, 3)))


def test_equal_builds_leave_the_images_interval():
    one = np.repeat([1.0, 0.0], [30, 70])
    mean, over_images = comparisons.mean_over_builds(np.stack([one] * 3)), intervals.share(one)
    assert mean.value == pytest.approx(0.3)
    assert (mean.low, mean.high) == pytest.approx((over_images.low, over_images.high), abs=0.01)
    assert mean.low <= over_images.low and mean.high >= over_images.high
    never = comparisons.mean_over_builds(np.zeros((3, 100)))
    assert (never.value, never.low, never.high) == (0, 0, intervals.share(np.zeros(100)).high)


def test_builds_that_differ_widen_the_interval():
    """Each build is all right or all wrong, so only builds vary: Student's interval of eight
    numbers.
    """
    scores = np.repeat([[1.0], [0.0]], 4, axis=0) * np.ones((8, 500))
    mean = comparisons.mean_over_builds(scores)
    error = scores.mean(axis=1).std(ddof=1) / math.sqrt(8)
    assert mean.high - mean.low == pytest.approx(2 * 2.3646 * error, rel=0.1)
    # The difference between two such defenses is as uncertain, although within each pair of builds
    # all images agree.
    other = np.where(np.arange(500) < 250, 1.0, 0.0) * np.ones((8, 1))
    gap = comparisons.gap_over_builds(scores, other)
    assert gap.high - gap.low >= mean.high - mean.low - 0.02


def test_a_difference_over_builds_is_paired():
    """Images decide, and the second defense loses the same twentieth everywhere: the interval is
    that of the twentieth.
    """
    one = np.stack([(np.random.Generator(np.random.Philox(0)).random(400) < 0.5).astype(float)] * 3)
    other = one * (np.arange(400) >= 20)
    gap = comparisons.gap_over_builds(other, one)
    assert gap.low < gap.value < gap.high < 0 and gap.high - gap.low < 0.06
    assert comparisons.gap_over_builds(one, one) == Estimate(0, 0, 0)
    flat = comparisons.gap_over_builds(np.zeros((3, 400)), np.zeros((3, 400)))
    assert flat.value == 0 and -0.02 < flat.low < 0 < flat.high < 0.02


def test_intervals_over_builds_hold_what_they_say():
    """Three builds whose accuracies scatter by 5 points around 0.5; resampled as they are, they
    hold it in four of five cases.
    """
    held = 0
    for trial in range(150):
        generator = np.random.Generator(np.random.Philox(trial))
        accuracy = 0.5 + 0.05 * generator.normal(size=(3, 1))
        scores = (generator.random((3, 1000)) < accuracy).astype(float)
        mean = comparisons.mean_over_builds(scores, resamples=400, seed=trial)
        held += mean.low <= 0.5 <= mean.high
    assert held >= 0.92 * 150


def test_an_attack_beats_another_by_seven_images_that_only_it_breaks():
    n = 200
    none = np.zeros(n, dtype=bool)

    def first(k: int) -> npt.NDArray[np.bool_]:
        return np.arange(n) < k

    # 2^-7 = 0.78 % < 1 % < 2^-6.
    assert comparisons.beats(first(7), none) and not comparisons.beats(first(6), none)
    assert not comparisons.beats(none, first(7)) and not comparisons.beats(none, none)
    # 12 against 2: P(X >= 12 | 14) = 0.65 %; 11 against 2 is 1.12 %.
    other = (np.arange(n) >= 100) & (np.arange(n) < 102)
    assert comparisons.beats(first(12), other) and not comparisons.beats(first(11), other)
    # Seven of two thousand are less than half a point.
    many = np.arange(2000)
    assert not comparisons.beats(many < 7, many < 0) and comparisons.beats(many < 10, many < 0)
    with pytest.raises(ValueError, match="same images"):
        comparisons.beats(first(3), none[:-1])
