"""Distances of the nearest broken points: medians, curves, rounding."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from bench.results.distances import Distances


def test_median_and_curve_count_what_was_not_found_as_farther_than_everything():
    found = Distances.of([0.0, 0.1, 0.2, math.inf], 0.1)
    assert found.values == (0.0, 0.1, 0.2, None)
    assert found.array().tolist() == [0.0, 0.1, 0.2, math.inf]
    assert found.median == 0.2 and found.found == 3
    shares = [one.value for one in found.curve([0.05, 0.1, 0.3, 1e9])]
    assert shares == [0.75, 0.5, 0.25, 0.25]
    assert Distances.of([0.1, math.inf], 0.1).median == math.inf


def test_rounding_takes_no_point_out_of_its_ball():
    eps = 2 / 3
    inside, outside = Distances.of([eps, np.nextafter(eps, 1)], eps).values
    assert inside == eps and outside > eps
    assert Distances.of([0.123456789], eps).values == (0.1234568,)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "x"])
def test_what_is_no_distance_is_refused(value):
    with pytest.raises(ValidationError):
        Distances(values=(value,))
