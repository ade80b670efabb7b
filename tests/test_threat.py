"""Balls inside the box: projections against slow oracles, exact membership."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from bench.errors import BadInput
from bench.threat import ThreatModel, read_norm


def images(seed, n=6, hug=True):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(n, 1, 2, 3))
    return torch.tensor(np.round(x) if hug else x, dtype=torch.float32)


@pytest.mark.parametrize("hug", [True, False])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 3))
def test_l1_projection_is_the_nearest_point_of_ball_and_box(hug, seed, eps):
    """The oracle splits the move into its positive and negative part, which makes the ball
    smooth.
    """
    origin = images(seed, n=1, hug=hug)
    far = np.random.default_rng(seed + 1).normal(size=origin.shape)
    x = origin + torch.tensor(far, dtype=torch.float32)
    ours = ThreatModel("l1", eps).project(x, origin)
    o, target = origin.flatten().double().numpy(), x.flatten().double().numpy()
    d = len(o)
    oracle = minimize(
        lambda u: ((o + u[:d] - u[d:] - target) ** 2).sum(),
        np.zeros(2 * d),
        jac=lambda u: np.outer([2, -2], o + u[:d] - u[d:] - target).ravel(),
        bounds=[(0, one) for one in (*(1 - o), *o)],
        constraints={
            "type": "ineq",
            "fun": lambda u: eps - u.sum(),
            "jac": lambda u: -np.ones(2 * d),
        },
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    nearest = np.sqrt(oracle.fun)
    assert np.linalg.norm(ours.flatten().numpy() - target) <= nearest + 1e-4
    assert ThreatModel("l1", eps).contains(ours, origin).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1.5))
def test_l2_projection_is_the_nearest_point_of_ball_and_box(seed, eps):
    origin = images(seed, n=1)
    x = origin + torch.tensor(
        np.random.default_rng(seed + 1).normal(size=origin.shape), dtype=torch.float32
    )
    ours = ThreatModel("l2", eps).project(x, origin)
    o, target = origin.flatten().double().numpy(), x.flatten().double().numpy()
    oracle = minimize(
        lambda z: ((z - target) ** 2).sum(),
        np.clip(o, 0, 1),
        jac=lambda z: 2 * (z - target),
        bounds=[(0, 1)] * len(o),
        constraints={
            "type": "ineq",
            "fun": lambda z: eps**2 - ((z - o) ** 2).sum(),
            "jac": lambda z: -2 * (z - o),
        },
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert (
        np.linalg.norm(ours.flatten().numpy() - target) <= np.linalg.norm(oracle.x - target) + 2e-3
    )
    assert ThreatModel("l2", eps).contains(ours, origin).all()


def test_clipping_after_projecting_is_not_optimal():
    """The reason for the bisection: the two differ on points that hug the box."""
    origin, threat = images(0), ThreatModel("l2", 1.0)
    x = (
        origin
        + torch.tensor(np.random.default_rng(1).normal(size=origin.shape), dtype=torch.float32) * 2
    )
    delta = x - origin
    naive = (origin + delta / delta.flatten(1).norm(dim=1).clamp(min=1)[:, None, None, None]).clamp(
        0, 1
    )
    ours = threat.project(x, origin)
    closer = (naive - x).flatten(1).norm(dim=1) - (ours - x).flatten(1).norm(dim=1)
    assert (closer > -1e-5).all()
    assert closer.max() > 0.01


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_projection_is_idempotent_and_keeps_inner_points(norm):
    origin, threat = images(0, hug=False), ThreatModel(norm, 0.1)
    inner = threat.random(
        origin,
        torch.rand(origin.shape, generator=torch.Generator().manual_seed(0)),
        torch.ones_like(origin),
    )
    assert torch.allclose(threat.project(inner, origin), inner, atol=1e-7)
    far = threat.project(origin + 5, origin)
    assert torch.allclose(threat.project(far, origin), far, atol=1e-6)
    assert threat.contains(far, origin).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_radius_of_its_own_for_each_image_is_a_ball_of_its_own(norm):
    origin = images(3)
    x = origin + torch.tensor(np.random.default_rng(0).normal(size=origin.shape)).float()
    radius = torch.tensor([0.0, 0.01, 0.05, 0.2, 0.7, 9.0], dtype=torch.float64)
    together = ThreatModel(norm, 0.1).project_within(x, origin, radius)
    assert torch.equal(together[0], origin[0])
    for i in range(1, 6):
        alone = ThreatModel("l2" if norm == "linf" and i == 5 else norm, float(radius[i]))
        expected = alone.project(x[i : i + 1], origin[i : i + 1])
        assert torch.allclose(together[i], expected[0], atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_points_fill_the_ball(norm):
    origin = torch.full((4000, 1, 2, 2), 0.5)
    threat = ThreatModel(norm, 0.2)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(4000, 1, 2, 2, generator=generator)
    points = threat.random(origin, uniform, torch.randn(4000, 1, 2, 2, generator=generator))
    distance = threat.distance(points, origin) / threat.eps
    assert threat.contains(points, origin).all()
    # The largest of four uniforms, and the radius in four dimensions, both have mean 4/5.
    assert float(distance.mean()) == pytest.approx(0.8, abs=0.01)


def test_contains_is_exact():
    origin = torch.full((1, 1, 2, 2), 0.5)
    for norm, slack in (("linf", 1e-6), ("l2", 1e-5), ("l1", 1e-6)):
        threat = ThreatModel(norm, 0.1)
        point = origin.clone()
        point[0, 0, 0, 0] += 0.1
        assert threat.contains(point, origin).all()
        point[0, 0, 0, 0] += 5 * slack
        assert not threat.contains(point, origin).any()
    assert not threat.contains(torch.full_like(origin, float("nan")), origin).any()
    edge = torch.ones(1, 1, 1, 1)
    assert not ThreatModel("linf", 0.1).contains(edge + 1e-6, edge).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_step_climbs_and_stays_inside(norm):
    origin, threat = images(3), ThreatModel(norm, 0.1)
    slope = torch.tensor(np.random.default_rng(0).normal(size=origin.shape), dtype=torch.float32)
    moved = threat.ascend(origin, slope, 0.05, origin)
    assert ((moved - origin) * slope).sum() > 0
    assert threat.contains(moved, origin).all()
    assert threat.distance(moved, origin).max() <= 0.05 + 1e-6
    assert torch.equal(threat.ascend(origin, torch.zeros_like(origin), 0.05, origin), origin)


@pytest.mark.parametrize(
    ("norm", "eps", "words"),
    [
        ("linf", 0, "positive"),
        ("linf", -1, "positive"),
        ("linf", 8, "8/255"),
        ("l0", 0.1, "linf, l2 or l1"),
        ("l2", float("nan"), "positive"),
    ],
)
def test_bad_budgets_are_refused(norm, eps, words):
    with pytest.raises(BadInput, match=words):
        ThreatModel(read_norm(norm), eps)


@pytest.mark.parametrize(("norm", "diameter"), [("l2", 4), ("l1", 16)])
def test_a_ball_beyond_the_diameter_is_refused(norm, diameter):
    with pytest.raises(BadInput, match="lower it"):
        ThreatModel(norm, 1.1 * diameter).check_shape((1, 4, 4))
    ThreatModel(norm, 0.9 * diameter).check_shape((1, 4, 4))


@pytest.mark.parametrize("pixels", [784, 150_528])
def test_a_projection_counts_as_inside_however_many_pixels_move(pixels):
    """Each pixel is rounded to float32, and L1 adds all of it up."""
    rng = np.random.default_rng(0)
    origin = torch.tensor(rng.uniform(size=(3, pixels)), dtype=torch.float32)
    x = origin + 0.3 * torch.tensor(rng.normal(size=(3, pixels)), dtype=torch.float32)
    for eps in (1e-3, 1.0, 12.0):
        threat = ThreatModel("l1", eps)
        point = threat.project(x, origin)
        assert threat.contains(point, origin).all()
        assert (threat.distance(point, origin) >= 0.99 * eps - pixels * 2.0**-25).all()


def test_a_step_in_l1_raises_a_linear_function_most():
    """One pixel of a hundred has the largest gradient but no room: the next ones take the step."""
    origin = torch.full((1, 1, 10, 10), 0.5)
    origin[0, 0, 0, 0], origin[0, 0, 0, 1] = 1.0, 0.9
    slope = torch.zeros_like(origin)
    slope[0, 0, 0, :3] = torch.tensor([3.0, 2.0, -1.0])
    moved = ThreatModel("l1", 1.0).ascend(origin, slope, 0.3, origin) - origin
    expected = torch.zeros_like(origin)
    expected[0, 0, 0, 1:3] = torch.tensor([0.1, -0.2])
    assert torch.allclose(moved, expected, atol=1e-6)


def test_a_step_in_l1_goes_into_one_pixel_of_a_hundred():
    origin = torch.full((1, 1, 20, 20), 0.5)
    slope = torch.arange(1.0, 401).reshape(origin.shape)
    moved = ThreatModel("l1", 9.0).ascend(origin, slope, 0.4, origin) - origin
    assert torch.allclose(moved.flatten()[-4:], torch.full((4,), 0.1), atol=1e-6)
    assert not moved.flatten()[:-4].any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_ball_for_many_steps_steps_and_projects_bit_for_bit_alike(norm):
    threat, generator = ThreatModel(norm, 0.3), torch.Generator().manual_seed(5)
    # Some outside the box, where the order of clipping shows.
    origin = 1.6 * torch.rand(6, 1, 4, 4, generator=generator) - 0.3
    x, gradient = (torch.randn(origin.shape, generator=generator) for _ in range(2))
    gradient[0, 0, 0, 0] = 0
    ball, chosen = threat.around(origin), torch.tensor([4, 1])
    assert torch.equal(ball.project(x), threat.project(x, origin))
    assert torch.equal(ball.ascend(x, gradient, 0.07), threat.ascend(x, gradient, 0.07, origin))
    assert torch.equal(ball.rows(chosen).project(x[chosen]), threat.project(x, origin)[chosen])
