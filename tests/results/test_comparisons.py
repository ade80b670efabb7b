"""Gaps and ratios of scores on the same images, by known answers and by simulation."""

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
