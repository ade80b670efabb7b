"""Populations whose true numbers are known: the numbers are true."""

import numpy as np
import pytest

from bench.results.class_scores import balanced_accuracy, macro_f1, tally
from bench.studies import populations
from bench.studies.populations import SHARES, attack_chances, class_sample, worst_truth


@pytest.fixture(autouse=True)
def small_populations(monkeypatch):
    monkeypatch.setattr(populations, "_LARGE", 20_000)
    worst_truth.cache_clear()
    yield
    worst_truth.cache_clear()


@pytest.mark.parametrize("name", list(populations._KINDS))
@pytest.mark.parametrize("mean", SHARES)
def test_chances_have_the_mean_that_is_said(name, mean):
    chances = populations._KINDS[name](mean, np.random.default_rng(0), (200_000,))
    assert chances.min() >= 0 and chances.max() <= 1
    assert chances.mean() == pytest.approx(mean, abs=5 * chances.std() / np.sqrt(200_000) + 1e-12)


@pytest.mark.parametrize("population", ["even", "uneven", "into one class"])
@pytest.mark.parametrize("draws", [1, 4])
def test_scores_over_classes_are_those_of_the_population(population, draws):
    sizes, confusion = populations._confusion(3, population, 0.8)
    assert confusion.sum(axis=1) == pytest.approx(1) and sizes.sum() == pytest.approx(1)
    labels, predictions = class_sample(sizes, confusion, 40_000, draws, np.random.default_rng(0))
    counts = tally(labels, predictions, 3)
    hits, named = sizes * np.diag(confusion), sizes @ confusion
    assert balanced_accuracy(counts) == pytest.approx(0.8, abs=0.015)
    assert macro_f1(counts) == pytest.approx((2 * hits / (sizes + named)).mean(), abs=0.015)


def test_the_attacker_leaves_no_less_than_the_lowest_chances():
    for population in ("alike", "independent", "related", "one stronger"):
        left, lowest = worst_truth(population, 0.5, 5)
        assert left >= lowest - 1e-9
        chances = attack_chances(population, 0.5, 5, np.random.default_rng(3), (50,))
        assert chances.shape == (50, 5) and ((chances >= 0) & (chances <= 1)).all()
    assert worst_truth("alike", 0.5, 5)[0] == pytest.approx(0.5, abs=0.02)
    left, lowest = worst_truth("one stronger", 0.5, 5)
    assert lowest == pytest.approx(0.45) and 0.45 < left < 0.5


def test_every_case_prints_an_interval_about_its_truth():
    """One sample of each: the right function is asked for the right number, in [0, 1] or signed."""
    random = np.random.default_rng(4)
    seen = {}
    for case in populations.cases(50):
        if (case.interval, case.draws, case.parts) in seen:
            continue
        estimate = case.sample(random)
        seen[case.interval, case.draws, case.parts] = True
        if estimate is not None and case.interval != "ratio":
            assert estimate.low <= estimate.high and estimate.high - estimate.low < 1.7
    names = {interval for interval, _, _ in seen}
    assert len(names) == 12 and {"share", "gap", "ratio", "macro-F1", "mean over builds"} <= names
