"""A number with its interval."""

import pytest

from bench.results.estimate import Estimate


def test_interval_refuses_values_outside_the_unit_range() -> None:
    with pytest.raises(ValueError, match="is empty"):
        Estimate(0.5, 0.6, 0.4)
