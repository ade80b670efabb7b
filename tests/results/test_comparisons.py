"""Gaps and ratios of scores on the same images, by known answers and by simulation."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from bench.results import comparisons, intervals


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


def test_builds_and_images_that_all_agree_leave_wilsons_interval():
    for score in (0.0, 1.0):
        scores = np.full((3, 50), score)
        assert comparisons.mean_over_builds(scores) == intervals.share(scores[0])
