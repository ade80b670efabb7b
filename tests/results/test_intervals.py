"""Intervals against known answers, other libraries, and their own claims by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, t
from statsmodels.stats.proportion import proportion_confint

from bench.results import aggregation, intervals
from bench.results.arrays import Ints
from bench.results.class_scores import macro_f1, tally
from bench.results.intervals import class_estimates, wilson
from tests.results.helpers import matrix


@pytest.mark.parametrize(
    ("n", "high"), [(100, 0.0370), (256, 0.0148), (512, 0.0074), (1000, 0.0038), (10_000, 0.0004)]
)
def test_wilson_upper_bound_of_no_success(n: int, high: float) -> None:
    interval = wilson(0, n)
    assert interval.value == interval.low == 0
    assert interval.high == pytest.approx(high, abs=5e-5)
    assert wilson(n, n).high == 1


def test_wilson_known_answers() -> None:
    interval = wilson(45, 1000)
    assert (interval.low, interval.high) == pytest.approx((0.033800, 0.059683), abs=5e-7)
    assert interval.value == 0.045
    for n, half in [(10_000, 0.0097), (1000, 0.0306), (200, 0.068), (100, 0.095)]:
        at = wilson(0.4321 * n, n)
        assert (at.high - at.low) / 2 == pytest.approx(half, abs=6e-4)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy_and_statsmodels(case: tuple[int, int]) -> None:
    k, n = case
    ours = wilson(k, n)
    scipy_interval = binomtest(k, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx(
        (scipy_interval.low, scipy_interval.high), abs=1e-12
    )
    assert (ours.low, ours.high) == pytest.approx(
        proportion_confint(k, n, method="wilson"), abs=1e-12
    )
    assert ours.low <= ours.value <= ours.high


def test_wilson_of_fractional_successes_lies_between_its_neighbours() -> None:
    below, at, above = wilson(7, 20), wilson(7.5, 20), wilson(8, 20)
    assert below.low < at.low < above.low
    assert below.high < at.high < above.high


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (float("nan"), 5)])
def test_wilson_refuses_what_is_no_share(successes: float, n: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson(successes, n)


def beta_draws(rng: np.random.Generator, n: int, draws: int) -> tuple[Ints, Ints]:
    """Balanced binary labels and draws whose chance of being right differs by image, 0.7 on
    average.
    """
    labels = np.arange(n) % 2
    right = rng.random((n, draws)) < rng.beta(0.7, 0.3, n)[:, None]
    return labels, np.where(right, labels[:, None], 1 - labels[:, None])


@pytest.mark.parametrize("n", [50, 100, 1000])
def test_wilson_covers_by_exact_sums(n: int) -> None:
    """Of a yes or no the coverage is a sum over the n + 1 outcomes: no simulation."""
    counts = np.arange(n + 1)
    bounds = [wilson(int(k), n) for k in counts]
    low, high = (np.array([getattr(bound, end) for bound in bounds]) for end in ("low", "high"))
    covered = [
        float(binom.pmf(counts, n, p)[(low <= p) & (p <= high)].sum())
        for p in np.linspace(0.02, 0.98, 481)
    ]
    assert min(covered) > 0.92 and 0.949 < np.mean(covered) < 0.953


def test_scores_over_classes_have_the_jackknifes_variance() -> None:
    """By deleting each image in turn, with all its draws, and tallying anew."""
    labels, predictions = beta_draws(np.random.default_rng(1), 60, 3)
    without = [
        float(macro_f1(tally(np.delete(labels, i), np.delete(predictions, i, axis=0), 2)))
        for i in range(60)
    ]
    variance = 59 / 60 * ((np.array(without) - np.mean(without)) ** 2).sum()
    _, f1 = class_estimates(labels, predictions, 2)
    assert f1.value == macro_f1(tally(labels, predictions, 2))
    p = f1.value * (1 - f1.value)
    # Two classes of 30 images: all classes alike would have the variance of one share.
    design = (60**2 * variance + 2.0) / (60 * p + 2.0)
    images = 60 / design
    expected = proportion_confint(f1.value * images, images, method="wilson")
    assert (f1.low, f1.high) == pytest.approx(expected, abs=1e-9)


def test_scores_over_classes_are_blind_to_order_and_gain_nothing_from_repeated_draws() -> None:
    labels, predictions = beta_draws(np.random.default_rng(2), 80, 4)
    first = class_estimates(labels, predictions, 2)
    backwards = np.arange(80)[::-1]
    again = class_estimates(labels[backwards], predictions[backwards][:, ::-1], 2)
    for one, other in zip(first, again, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)
    once = class_estimates(labels, predictions[:, 0], 2)
    for one, other in zip(
        once, class_estimates(labels, np.repeat(predictions[:, :1], 20, axis=1), 2), strict=True
    ):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)


@pytest.mark.parametrize(("n", "K", "known"), [(49, 2, False), (50, 2, True), (50, 10, True)])
def test_scores_over_classes_have_no_interval_on_few_images(n: int, K: int, known: bool) -> None:
    labels = np.arange(n) % K
    for estimate in class_estimates(labels, labels, K):
        assert estimate.value == estimate.high == 1
        assert (estimate.low > 0) is known
    few = np.arange(54) % 11
    assert class_estimates(few, few, 11)[0].low == 0, "fewer than five images a class"
    assert class_estimates(np.arange(55) % 11, np.arange(55) % 11, 11)[0].low > 0


def test_an_interval_over_classes_rests_on_the_images_of_each() -> None:
    """All right, but half of the score is of ten images: no narrower than by twenty of each."""
    labels = np.repeat([0, 1], [990, 10])
    balanced, _ = class_estimates(labels, labels, 2)
    assert balanced.low < wilson(40, 40).low
    even = np.repeat([0, 1], 500)
    assert class_estimates(even, even, 2)[0].low > 0.99


def test_scores_over_classes_cover_and_unclustered_draws_would_not() -> None:
    rng = np.random.default_rng(5)

    def covers(labels: Ints, predictions: Ints) -> bool:
        interval = class_estimates(labels, predictions, 2)[0]
        return interval.low <= 0.7 <= interval.high

    cases = [beta_draws(rng, 120, 5) for _ in range(400)]
    clustered = np.mean([covers(labels, predictions) for labels, predictions in cases])
    flat = np.mean(
        [covers(np.repeat(labels, 5), predictions.ravel()) for labels, predictions in cases]
    )
    assert 0.92 < clustered < 0.99
    assert flat < 0.85


@pytest.mark.parametrize(("K", "n", "low"), [(2, 50, 0.92), (10, 50, 0.92), (10, 100, 0.93)])
def test_macro_f1_covers_from_fifty_images_on(K: int, n: int, low: float) -> None:
    """Classes of one size, 60 % right, errors anywhere: macro-F1 of the population is 0.6."""
    rng = np.random.default_rng(8)
    held = []
    for _ in range(600):
        labels = rng.integers(0, K, n)
        wrong = (labels + rng.integers(1, K, n)) % K
        f1 = class_estimates(labels, np.where(rng.random(n) < 0.6, labels, wrong), K)[1]
        held.append(f1.low <= 0.6 <= f1.high)
    assert low < np.mean(held) < 0.99


def test_interval_of_a_rule_rests_on_images_and_not_on_draws():
    for rule in (aggregation.mean_of_draws, aggregation.majority, aggregation.one_draw):
        few, many = (
            intervals.share(rule(np.repeat(matrix("1", "0", "1", "1"), draws, axis=1)))
            for draws in (1, 50)
        )
        assert few == many, "draws that all agree add no evidence"
    differing = intervals.share(np.array([0.4, 0.6] * 50))
    assert differing.high - differing.low < 0.1 < wilson(50, 100).high - wilson(50, 100).low, (
        "images that differ little say more than yes or no"
    )


def test_intervals_of_means_cover():
    rng = np.random.default_rng(1)
    for truth in (0.005, 0.3):
        held = 0
        for _ in range(300):
            chances = rng.beta(2 * truth, 2 * (1 - truth), size=100)
            interval = intervals.share(
                aggregation.mean_of_draws(rng.random((100, 20)) < chances[:, None])
            )
            held += interval.low <= truth <= interval.high
        assert held >= 0.94 * 300


def test_a_mean_of_scores_has_wilsons_interval_whatever_rounding_does():
    scores = np.full(10, 1.0) + 1e-16
    assert intervals.share(scores) == wilson(10, 10)
    # Two whole images and two in part: s^2 / (p (1 - p)) = 0.755, with a quarter image's guess.
    p, variance = 0.4375, np.var([0.5, 1.0, 0.0, 0.25], ddof=1)
    images = 4 / ((4 * variance + 0.25) / (4 * p * (1 - p) + 0.25))
    mixed = intervals.share(np.array([0.5, 1.0, 0.0, 0.25]))
    assert (mixed.low, mixed.high) == pytest.approx(
        proportion_confint(p * images, images, method="wilson")
    )
    outside = intervals.share(np.array([1.5, -0.2, 1.0, 1.2]))
    assert 0 <= outside.low <= outside.value <= outside.high <= 1
    over = np.full(3, np.nextafter(1.0, 2.0))
    assert intervals.share(over) == wilson(3, 3), "a sum may exceed n by rounding"


def test_a_mean_of_measurements_has_students_interval_over_its_known_values():
    values = np.random.default_rng(0).normal(3, 2, 12)
    mean = intervals.student_mean(np.array([*values, np.nan]))
    low, high = t.interval(0.95, 11, values.mean(), values.std(ddof=1) / np.sqrt(12))
    assert (mean.value, mean.low, mean.high) == pytest.approx((values.mean(), low, high))
    assert np.isnan(intervals.student_mean(np.array([np.nan])).value)
    alone = intervals.student_mean(np.array([0.5]))
    assert alone.value == 0.5 and np.isnan(alone.low)
