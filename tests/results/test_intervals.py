"""Intervals against known answers, other libraries, and their own claims by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ks_2samp
from statsmodels.stats.proportion import proportion_confint

from bench.results import aggregation, intervals
from bench.results.arrays import Floats, Ints, Numbers
from bench.results.class_scores import balanced_accuracy, macro_f1, tally
from bench.results.intervals import cluster_bootstrap, wilson
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


def test_bootstrap_equals_naive_resampling_in_distribution() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 60)
    predictions = np.where(rng.random((60, 3)) < 0.6, labels[:, None], rng.integers(-1, 4, (60, 3)))
    seen: list[Floats] = []

    def recorded(tables: Numbers) -> Floats:
        assert np.all(tables[..., 1, :].sum(axis=-1) == 180)
        values = macro_f1(tables)
        seen.append(np.atleast_1d(values))
        return values

    interval = cluster_bootstrap(labels, predictions, 4, recorded, resamples=4000)
    picks = [rng.integers(0, 60, 60) for _ in range(4000)]
    naive = np.array([macro_f1(tally(labels[i], predictions[i], 4)) for i in picks])
    grouped = np.concatenate(seen[1:])
    assert len(grouped) == 4000
    assert ks_2samp(grouped, naive).pvalue > 1e-3
    assert (interval.low, interval.high) == pytest.approx(
        np.quantile(naive, [0.025, 0.975]), abs=0.01
    )
    assert interval.value == macro_f1(tally(labels, predictions, 4))


def test_bootstrap_is_reproducible_and_blind_to_order() -> None:
    labels, predictions = beta_draws(np.random.default_rng(2), 50, 4)
    first = cluster_bootstrap(labels, predictions, 2, macro_f1, 500)
    backwards = np.arange(50)[::-1]
    assert (
        cluster_bootstrap(labels[backwards], predictions[backwards][:, ::-1], 2, macro_f1, 500)
        == first
    )
    assert cluster_bootstrap(labels, predictions, 2, macro_f1, 500, seed=1) != first


def test_bootstrap_gains_nothing_from_repeated_draws() -> None:
    labels, predictions = beta_draws(np.random.default_rng(3), 80, 1)
    once = cluster_bootstrap(labels, predictions, 2, balanced_accuracy, 1000)
    assert (
        cluster_bootstrap(labels, np.repeat(predictions, 20, axis=1), 2, balanced_accuracy, 1000)
        == once
    )
    assert cluster_bootstrap(labels, predictions[:, 0], 2, balanced_accuracy, 1000) == once


def test_bootstrap_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions = beta_draws(np.random.default_rng(4), 30, 2)
    whole = cluster_bootstrap(labels, predictions, 2, macro_f1, 300)
    monkeypatch.setattr("bench.results.intervals.CHUNK_ELEMENTS", 50)
    assert cluster_bootstrap(labels, predictions, 2, macro_f1, 300) == whole


def test_bootstrap_covers_and_unclustered_draws_would_not() -> None:
    rng = np.random.default_rng(5)

    def covers(labels: Ints, predictions: Ints) -> bool:
        interval = cluster_bootstrap(labels, predictions, 2, balanced_accuracy, 500)
        return interval.low <= 0.7 <= interval.high

    cases = [beta_draws(rng, 120, 5) for _ in range(400)]
    clustered = np.mean([covers(labels, predictions) for labels, predictions in cases])
    flat = np.mean(
        [covers(np.repeat(labels, 5), predictions.ravel()) for labels, predictions in cases]
    )
    assert 0.91 < clustered < 0.98
    assert flat < 0.85


def test_interval_of_a_rule_rests_on_images_and_not_on_draws():
    for rule in (aggregation.mean_of_draws, aggregation.majority, aggregation.one_draw):
        few, many = (
            intervals.share(rule(np.repeat(matrix("1", "0", "1", "1"), draws, axis=1)))
            for draws in (1, 50)
        )
        assert few == many, "draws that all agree add no evidence"


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
    assert intervals.share(np.array([0.5, 1.0, 0.0, 0.25])) == wilson(1.75, 4)
    over = np.full(3, np.nextafter(1.0, 2.0))
    assert intervals.share(over) == wilson(3, 3), "a sum may exceed n by rounding"


def test_a_mean_has_the_percentile_bootstrap_over_its_known_values():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean = intervals.bootstrap_mean(np.array([*values, np.nan]))
    half = 1.96 * values.std() / 20
    assert mean.value == pytest.approx(values.mean())
    assert (mean.low, mean.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.015
    )
    assert mean == intervals.bootstrap_mean(values)
    assert np.isnan(intervals.bootstrap_mean(np.array([np.nan])).value)
