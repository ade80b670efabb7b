"""Comparisons on the same images and over builds, by known answers and by simulation."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar

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
    for _ in range(400):
        fresh, replay = paired(rng, 150)
        gap, ratio = comparisons.gap(fresh, replay), comparisons.ratio(replay, fresh)
        gaps += gap.low <= 0.25 <= gap.high
        ratios += ratio.low <= 0.5 <= ratio.high
    assert 0.93 * 400 <= gaps <= 0.99 * 400 and 0.93 * 400 <= ratios <= 0.99 * 400
    unpaired = intervals.share(fresh).high - intervals.share(fresh).low
    assert gap.high - gap.low < 1.2 * unpaired


def test_a_gap_is_that_of_two_more_images():
    """Agresti and Min: one more image on which only one side is right, and one for the other."""
    a, b = np.repeat([1.0, 0, 1, 0], [12, 3, 60, 25]), np.repeat([0.0, 1, 1, 0], [12, 3, 60, 25])
    gap, d = comparisons.gap(a, b), np.repeat([1.0, -1, 0], [13, 4, 85])
    half = 1.959964 * d.std() / math.sqrt(102)
    assert gap.value == pytest.approx(0.09)
    assert [gap.low, gap.high] == pytest.approx([d.mean() - half, d.mean() + half], abs=1e-6)


def test_a_gap_of_shares_of_draws_invents_less_than_whole_images():
    """Where both sides differ by a tenth of the draws everywhere, two whole images would swamp
    them; none would be blind to the few that may differ by more.
    """
    a = np.where(np.arange(100) % 2, 0.45, 0.55)
    gap = comparisons.gap(a, 1 - a)
    half = 1.959964 * math.sqrt((100 * 0.01 + 2 * 0.4) / 102 / 102)
    assert [gap.low, gap.high] == pytest.approx([-half, half], abs=1e-6)


def test_a_ratio_holds_those_for_which_the_difference_may_be_none():
    """Fieller: at either end the mean of a - r b is 1.96 standard errors from 0, among four more
    images.
    """
    a, b = np.repeat([1.0, 0, 1, 0], [2, 30, 40, 28]), np.repeat([0.0, 1, 1, 0], [2, 30, 40, 28])
    ratio = comparisons.ratio(a, b)
    assert ratio.value == pytest.approx(42 / 70)
    more = np.concatenate([a, [1, 0, 1, 0]]), np.concatenate([b, [0, 1, 1, 0]])
    for r, sign in ((ratio.low, 1), (ratio.high, -1)):
        d = more[0] - r * more[1]
        assert d.mean() == pytest.approx(sign * 1.959964 * d.std() / math.sqrt(104), abs=1e-6)


def test_a_ratio_of_shares_of_draws_is_not_pulled_to_one():
    """A fifth of the draws is left everywhere: 300 images tell that well."""
    rng = np.random.default_rng(3)
    whole = (rng.random(300) < 0.5).astype(float)
    held = [
        estimate.low <= 0.2 <= estimate.high
        for estimate in (
            comparisons.ratio(rng.binomial(20, 0.2 * whole) / 20, whole) for _ in range(300)
        )
    ]
    assert 0.93 <= np.mean(held) <= 0.99


def test_agreement_on_some_images_leaves_a_difference_possible():
    half = np.array([1.0, 0] * 50)
    same = comparisons.gap(half, half)
    assert same.value == 0 and -0.03 < same.low < 0 < same.high < 0.03
    assert comparisons.ratio(half, half).low < 1 < comparisons.ratio(half, half).high
    none = np.zeros(100)
    ratio, gap = comparisons.ratio(none, half), comparisons.gap(half, none)
    assert ratio.value == ratio.low == 0 and 0.05 < ratio.high < 0.15
    assert gap.low < 0.41 and gap.high > 0.59
    assert comparisons.ratio(half, none) is None
    assert comparisons.gap(np.ones(50), np.zeros(50)).high == 1


def test_a_ratio_over_almost_nothing_has_no_upper_bound():
    one = np.array([1.0] + [0.0] * 99)
    ratio = comparisons.ratio(one, one[::-1].copy())
    assert ratio.value == 1 and ratio.low == 0 and ratio.high == np.inf
    much = comparisons.ratio(np.ones(100), one)
    assert much.value == 100 and much.high == np.inf
    assert much.low > 5, "a hundred of a hundred is more than what one of a hundred may be"
    with pytest.raises(ValueError, match="same images"):
        comparisons.gap(one, one[:50])
    with pytest.raises(ValueError, match="same images"):
        comparisons.ratio(one, one[:50])


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


def test_a_single_build_has_no_interval():
    """It says nothing of others, whatever its images say of it."""
    one = np.array([[1.0, 0] * 50])
    for estimate in (comparisons.mean_over_builds(one), comparisons.gap_over_builds(one, 1 - one)):
        assert math.isnan(estimate.low) and math.isnan(estimate.high)
    assert comparisons.mean_over_builds(one).value == 0.5
    assert comparisons.mean_over_builds(np.repeat(one, 2, axis=0)).low > 0.4


def test_equal_builds_leave_the_images_interval():
    one = np.repeat([1.0, 0.0], [30, 70])
    mean, over_images = comparisons.mean_over_builds(np.stack([one] * 3)), intervals.share(one)
    assert mean == over_images
    never = comparisons.mean_over_builds(np.zeros((3, 100)))
    assert (never.value, never.low, never.high) == (0, 0, intervals.share(np.zeros(100)).high)


def test_builds_that_differ_widen_the_interval():
    """Each build is all right or all wrong, so only builds vary: Student's interval of eight
    numbers, bent to stay in [0, 1].
    """
    scores = np.repeat([[1.0], [0.0]], 4, axis=0) * np.ones((8, 500))
    mean = comparisons.mean_over_builds(scores)
    half = 2.3646 * scores.mean(axis=1).std(ddof=1) / math.sqrt(8)
    # Wilson's interval of p = 1/2 with p (1 - p) z^2 / m = h^2 has half width h / sqrt(1 + 4 h^2).
    assert mean.high - mean.low == pytest.approx(2 * half / math.sqrt(1 + 4 * half**2), rel=0.01)
    # The difference between two such defenses is as uncertain, although within each pair of builds
    # all images agree.
    other = np.where(np.arange(500) < 250, 1.0, 0.0) * np.ones((8, 1))
    gap = comparisons.gap_over_builds(scores, other)
    assert gap.high - gap.low == pytest.approx(2 * half, rel=0.03)


def test_a_difference_over_builds_is_paired():
    """Images decide, and the second defense loses the same twentieth everywhere: the interval is
    that of the twentieth.
    """
    one = np.stack([(np.random.Generator(np.random.Philox(0)).random(400) < 0.5).astype(float)] * 3)
    other = one * (np.arange(400) >= 20)
    gap = comparisons.gap_over_builds(other, one)
    assert gap == comparisons.gap(other[0], one[0]), "builds that agree add nothing"
    assert gap.low < gap.value < gap.high < 0 and gap.high - gap.low < 0.06


@pytest.mark.parametrize(("builds", "images"), [(2, 1000), (3, 1000), (3, 50)])
def test_intervals_over_builds_hold_what_they_say(builds, images):
    """Builds whose accuracies scatter by 5 points around one half; over images alone the interval
    would hold it in four of five cases.
    """
    held = alone = 0
    for trial in range(400):
        generator = np.random.Generator(np.random.Philox(trial))
        accuracy = 0.5 + 0.05 * generator.normal(size=(builds, 1))
        scores = (generator.random((builds, images)) < accuracy).astype(float)
        mean = comparisons.mean_over_builds(scores)
        held += mean.low <= 0.5 <= mean.high
        over_images = intervals.share(scores.mean(axis=0))
        alone += over_images.low <= 0.5 <= over_images.high
    assert held >= 0.91 * 400
    assert images == 50 or alone < 0.75 * 400


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
