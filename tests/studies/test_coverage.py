"""The study `coverage`, end to end on a few of its cases, and with intervals that do not hold."""

import numpy as np
import pytest

from bench.results.estimate import Estimate
from bench.studies import coverage, populations
from bench.studies.coverage import Coverage, CoverageParams
from bench.studies.study import StudySetting

FEW = {
    "share": {0.2, 0.5},
    "macro-F1": {0.2},
    "gap": {0.5},
    "worst case over attacks": {0.2},
    "mean over builds": {0.2},
}


@pytest.fixture
def few(monkeypatch, shares):
    """Only some cases, over smaller populations."""
    monkeypatch.setattr(populations, "_LARGE", 20_000)
    populations.worst_truth.cache_clear()
    every = populations.cases

    def some(n):
        return (case for case in every(n) if case.share in shares.get(case.interval, ()))

    monkeypatch.setattr(coverage, "cases", some)
    yield
    populations.worst_truth.cache_clear()


@pytest.fixture
def shares():
    return FEW


def run(trials=40):
    messages = []
    setting = StudySetting(progress=messages.append)
    return Coverage(CoverageParams(trials=trials, images=(50,))).run(setting), messages


def test_the_study_end_to_end(few):
    result, messages = run()
    assert list(result.tables) == ["intervals", "coverage", "worst-case", "cells"]
    assert set(result.figures) == {"coverage", "worst-case"}
    table = result.tables["coverage"]
    assert set(table["interval"]) == set(FEW) and "share, 50 images" in messages
    assert result.held is True and f"{len(table)} of {len(table)} intervals" in result.sentence
    assert result.tables["intervals"]["interval"].tolist() == list(dict.fromkeys(table["interval"]))
    assert result.tables["intervals"]["held"].eq("yes").all()
    assert table["cases"].sum() == len(result.tables["cells"])
    assert set(result.tables["worst-case"]["attacks"]) == {2, 5, 10}
    again, _ = run()
    assert again.tables["cells"].equals(result.tables["cells"]), "the seed decides"


@pytest.mark.parametrize("shares", [{"share": {0.2, 0.5}, "gap": {0.5}}], ids=["two kinds"])
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_an_interval_that_is_too_short_or_too_long_does_not_hold(few, monkeypatch, factor):
    honest = populations.share

    def wrong(scores):
        one = honest(scores)
        return Estimate(
            one.value,
            one.value - factor * (one.value - one.low),
            one.value + factor * (one.high - one.value),
        )

    monkeypatch.setattr(populations, "share", wrong)
    result, _ = run(400)
    table = result.tables["coverage"]
    assert result.held is False
    assert not table.loc[table["interval"] == "share", "held"].any()
    assert table.loc[table["interval"] == "gap", "held"].all()


def test_coverage_and_bias_are_those_of_the_samples():
    row = coverage.simulated(case_of([0.5, 0.54, 0.52, None]), 4, [0, 0])
    assert row["samples"] == 3 and row["coverage"] == 1
    assert row["bias"] == pytest.approx(0) and row["width"] == pytest.approx(0.1)
    assert not np.isnan(row["limit"])


def test_what_looks_low_is_drawn_anew_and_judged_by_the_new_samples_alone():
    unlucky, then = [0.4, 0.4], [0.4, *[0.53] * 19]
    row = coverage.simulated(case_of(unlucky + then), 2, [0, 0])
    assert row["samples"] == 20 and row["coverage"] == pytest.approx(0.95)
    assert row["bias"] == pytest.approx(0.01 - 0.13 / 20)


def case_of(values):
    """A case with the truth .52 whose samples print these values, .05 to both sides."""
    left = iter(values)

    def sample(_):
        value = next(left)
        return None if value is None else Estimate(value, value - 0.05, value + 0.05)

    return populations.Case("share", 50, 1, 0, "any", 0.5, 0.52, sample, 0.52)
