"""A number with its interval."""

import math

import pytest

from bench.results.estimate import Estimate


def test_an_interval_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        Estimate(0.5, 0.6, 0.4)


def test_an_estimate_prints_in_percent_or_in_any_unit() -> None:
    estimate = Estimate(0.98234, 0.972, 0.9891)
    assert str(estimate) == "98.2 [97.2, 98.9]"
    assert estimate.scaled(1, 2) == "0.98 [0.97, 0.99]"


def test_zero_has_no_sign_and_infinity_is_unbounded() -> None:
    assert str(Estimate(-0.0001, -0.0004, 0.0)) == "0.0 [0.0, 0.0]"
    assert Estimate(1.0, 0.0, math.inf).scaled(1, 1) == "1.0 [0.0, unbounded]"


def test_a_value_without_an_interval_stands_alone() -> None:
    assert str(Estimate(0.5, math.nan, math.nan)) == "50.0"
    assert str(Estimate(math.nan, math.nan, math.nan)) == "nan"
