"""Projected L-BFGS against exact bounded least squares."""

import numpy as np
import pytest
import torch
from bench_attacks.lbfgs import minimise
from scipy.optimize import lsq_linear

N, DIMENSIONS, WIDTH = 8, 25, 0.1


def problem(outputs, dtype):
    """A linear map, points, the outputs to reach, and bounds around the points."""
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, DIMENSIONS, generator=generator, dtype=torch.float64)
    x, guides = (
        torch.rand(N, DIMENSIONS, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    wanted = guides @ weight.T
    low, high = (x - WIDTH).clamp(0), (x + WIDTH).clamp(max=1)
    exact = [
        lsq_linear(weight, wanted[i], (low[i], high[i]), method="bvls", tol=1e-14).cost
        for i in range(N)
    ]
    return tuple(a.to(dtype) for a in (weight, x, wanted, low, high)), np.array(exact)


def distance(weight, wanted, asked=None):
    def function(points, rows, number):
        if asked is not None:
            asked[rows] += 1
        gap = points @ weight.T - wanted[rows]
        return gap.square().sum(1) / 2, gap @ weight, torch.zeros(len(points), dtype=torch.bool)

    return function


@pytest.mark.parametrize("outputs", [25, 60])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["64", "32"]
)
def test_it_reaches_the_exact_optimum_between_bounds(outputs, dtype, tolerance):
    (weight, x, wanted, low, high), exact = problem(outputs, dtype)
    minimum = minimise(distance(weight, wanted), x, low, high, queries=200)
    assert (minimum.points >= low).all() and (minimum.points <= high).all()
    held = (minimum.points == low) | (minimum.points == high)
    assert 0.1 < held.double().mean() < 0.95, "a bound that matters"
    assert np.abs(minimum.values.numpy() - exact).max() <= tolerance * max(1, exact.max())


def test_each_row_has_a_search_of_its_own():
    """Alone a row is asked about the same points as among others, whose scales differ."""
    (weight, x, wanted, low, high), _ = problem(25, torch.float64)
    wanted = wanted * torch.logspace(-2, 2, N, dtype=torch.float64)[:, None]
    together = minimise(distance(weight, wanted), x, low, high, queries=40)
    for i in (0, 3, 7):
        one = slice(i, i + 1)
        alone = minimise(distance(weight, wanted[one]), x[one], low[one], high[one], queries=40)
        assert torch.allclose(alone.points[0], together.points[i], atol=1e-9)


def test_a_row_at_its_optimum_is_asked_once():
    weight, asked = torch.eye(DIMENSIONS, dtype=torch.float64), torch.zeros(N)
    (_, x, _, low, high), _ = problem(25, torch.float64)
    wanted = x.clone()
    wanted[1:] += 1
    minimum = minimise(distance(weight, wanted, asked), x, low, high, queries=50)
    assert asked[0] == 1 and (asked[1:] > 1).all() and (asked < 10).all()
    assert torch.equal(minimum.points[1:], high[1:])


def test_a_done_row_leaves_with_the_point_that_made_it_so():
    (weight, x, wanted, low, high), _ = problem(25, torch.float64)
    plain, seen = distance(weight, wanted), {}

    def function(points, rows, number):
        value, gradient, done = plain(points, rows, number)
        for row, point in zip(rows.tolist(), points, strict=True):
            assert row not in (2, 5) or number <= 3
            seen[row] = point
        return value, gradient, done | (((rows == 2) | (rows == 5)) & (number == 3))

    minimum = minimise(function, x, low, high, queries=20)
    assert minimum.done.nonzero().flatten().tolist() == [2, 5]
    assert torch.equal(minimum.points[2], seen[2])
