"""The search for the nearest broken point: exact distances of linear models, budgets, draws."""

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import nn

from bench.losses import margin
from bench.randomness import read_randomness
from bench.searches import nearest
from bench.searches.minimal import passes
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.toys import (
    NoisyLinear,
    classifier,
    exact_distance,
    exact_target_distance,
    linear_problem,
)

N = 20
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def search(model, images, labels, threat, *, rows=None, ids=None, randomness="fresh", **budget):
    defended = model
    if not isinstance(model, NoisyLinear):
        defended = classifier(model, int(model(images[:1]).shape[1]))
    ids = np.arange(len(images)) if ids is None else ids
    victim = Victim(defended, ids, randomness=read_randomness(randomness), batch_size=64)
    rows = torch.arange(len(images)) if rows is None else rows
    with frozen(defended):
        return nearest(victim, images, labels, rows, threat, **budget), victim


def clear(model, images, labels):
    """Images whose margin is far above the slack of a success, which adds to their distance."""
    return (margin(model(images), labels) < -0.05).numpy()


@pytest.mark.parametrize("active_box", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_of_linear_models_are_exact(norm, classes, active_box):
    model, images, labels = linear_problem(classes, N, active_box=active_box, seed=classes)
    exact = exact_distance(model, images, labels, norm)
    found, _ = search(model, images, labels, ThreatModel(norm, float(np.median(exact))))
    ratio = (found.distances.numpy() / exact)[clear(model, images, labels)]
    assert len(ratio) > N / 2
    assert ratio.min() > 0.999 and ratio.max() < 1.01
    assert (model(found.points).argmax(1) != labels).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_without_a_box_it_is_the_margin_over_the_dual_norm(norm):
    model, images, labels = linear_problem(2, N, active_box=False)
    slope = (model.weight[0] - model.weight[1]).detach().double().norm(p=DUAL[norm])
    closed = (margin(model(images), labels).detach().abs() / slope).numpy()
    # Pixels lie in [0.4, 0.6], so that within 0.4 none of them meets the box.
    near = clear(model, images, labels) & (closed < 0.4)
    assert near.sum() > N / 2
    found, _ = search(model, images, labels, ThreatModel(norm, 0.1))
    assert found.distances.numpy()[near] == pytest.approx(closed[near], rel=0.01)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_with_the_box_it_is_the_optimum_of_a_linear_programme(norm):
    model, images, labels = linear_problem(4, 12, active_box=True, seed=5)
    exact = np.full(12, np.inf)
    for target in range(4):
        to = exact_target_distance(model, images, torch.full((12,), target), norm)
        exact = np.where(labels.numpy() == target, exact, np.minimum(exact, to))
    found, _ = search(model, images, labels, ThreatModel(norm, 0.1))
    ok = clear(model, images, labels)
    assert ok.sum() > 6
    assert found.distances.numpy()[ok] == pytest.approx(exact[ok], rel=0.01)


def test_with_the_box_it_is_the_optimum_of_a_quadratic_programme():
    model, images, labels = linear_problem(3, 6, active_box=True, seed=7)
    found, _ = search(model, images, labels, ThreatModel("l2", 0.1))
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    for i in np.flatnonzero(clear(model, images, labels)):
        x, y = images[i].flatten().double().numpy(), int(labels[i])
        lengths = [_distance(x, weight[j] - weight[y], bias[j] - bias[y]) for j in {0, 1, 2} - {y}]
        assert found.distances[i].item() == pytest.approx(min(lengths), rel=0.01)


def _distance(x, slope, offset):
    """Of x from the half space slope . z + offset >= 0 inside the box, in L2."""
    length = np.linalg.norm(slope)
    done = minimize(
        lambda z: ((z - x) ** 2).sum(),
        (slope > 0).astype(float),
        jac=lambda z: 2 * (z - x),
        bounds=[(0, 1)] * len(x),
        constraints=LinearConstraint(slope / length, -offset / length, np.inf),
        method="SLSQP",
    )
    assert done.success
    return np.sqrt(done.fun)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_is_inside_lies_in_the_ball_and_breaks_what_the_distance_says(norm):
    model, images, labels = linear_problem(3, N, active_box=True)
    eps = float(np.median(exact_distance(model, images, labels, norm)))
    threat = ThreatModel(norm, eps)
    found, _ = search(model, images, labels, threat, steps=40)
    assert threat.contains(found.inside, images).all()
    broken = (model(found.inside).argmax(1) != labels).numpy()
    assert (broken == (found.distances.numpy() <= eps)).all()
    assert 5 < broken.sum() < N - 5
    beyond = found.distances.numpy() > eps
    outside = ~threat.contains(found.points, images).numpy()
    assert (outside == beyond).all()
    assert (model(found.points).argmax(1) != labels).all()


@pytest.mark.parametrize(("steps", "classes", "starts"), [(30, 0, 1), (30, 9, 1), (9, 2, 3)])
def test_every_image_costs_the_told_passes(steps, classes, starts):
    model, images, labels = linear_problem(4, N, active_box=True)
    budget = {"steps": steps, "classes": classes, "starts": starts}
    _, victim = search(model, images, labels, ThreatModel("linf", 0.05), **budget)
    forwards, backwards = passes(steps, min(classes, 3), starts)
    assert set(victim.forwards.tolist()) == {forwards}
    assert set(victim.backwards.tolist()) == {backwards}


@pytest.mark.parametrize("randomness", ["fresh", "eot:k=3", "replay"])
def test_an_image_stands_alone(randomness):
    model, images, labels = linear_problem(3, 8, active_box=True)
    noisy = NoisyLinear(model, 0.05) if randomness != "fresh" else model
    threat, budget = ThreatModel("linf", 0.05), {"steps": 12, "starts": 2}
    asked = {"randomness": randomness, **budget}
    together, _ = search(noisy, images, labels, threat, **asked)
    order = torch.tensor([5, 2, 7, 0])
    some, _ = search(noisy, images[order], labels[order], threat, ids=order.numpy(), **asked)
    rows, _ = search(noisy, images, labels, threat, rows=order, **asked)
    for place in order:
        alone, _ = search(noisy, images, labels, threat, rows=place[None], **asked)
        assert torch.allclose(alone.points, together.points[place], atol=1e-5)
    for other in (some, rows):
        assert torch.allclose(other.points, together.points[order], atol=1e-5)
        assert torch.allclose(other.distances, together.distances[order], atol=1e-6)
        assert torch.allclose(other.inside, together.inside[order], atol=1e-5)


@pytest.mark.parametrize("randomness", ["eot:k=20", "replay", "replay-set:k=5"])
def test_noise_around_a_linear_model_moves_no_boundary_far(randomness):
    """The noise is symmetric, so most draws err beyond the boundary of the linear model; 20 draws
    of one image put theirs a little elsewhere, as fixed noise does.
    """
    model, images, labels = linear_problem(2, N, active_box=False)
    gap = (model.weight[0] - model.weight[1]).detach().double()
    found, _ = search(
        NoisyLinear(model, 0.02),
        images,
        labels,
        ThreatModel("l2", 0.1),
        randomness=randomness,
        steps=30,
    )
    exact = exact_distance(model, images, labels, "l2")
    assert torch.isfinite(found.distances).all()
    # A draw moves the boundary by a normal number of scale sigma along the gap.
    moved = found.distances.numpy() - exact
    assert np.abs(moved).max() < 4 * 0.02
    assert np.abs(moved.mean()) < 0.01 and gap.norm() > 0
    # In the ball, images whose boundary lies well inside of it are broken in most draws.
    if randomness == "replay":
        return
    inside = margin(model(found.inside), labels).detach().numpy()
    assert (inside[exact < 0.1 - 4 * 0.02] > 0).all()


def test_without_a_gradient_nothing_is_found_and_nothing_is_claimed():
    class Hidden(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            return self.inner(images.detach()) + 0 * images.flatten(1).sum(1, keepdim=True)

    model, images, labels = linear_problem(3, N, active_box=True)
    found, _ = search(Hidden(model), images, labels, ThreatModel("linf", 0.05), steps=5)
    assert torch.isinf(found.distances).all()
    assert torch.equal(found.points, images) and torch.equal(found.inside, images)


def test_an_image_that_is_wrong_before_has_distance_zero():
    model, images, labels = linear_problem(3, 4, active_box=True)
    found, _ = search(model, images, (labels + 1) % 3, ThreatModel("linf", 0.05), steps=5)
    assert found.distances.tolist() == [0.0] * 4
    assert torch.equal(found.points, images)


def test_more_starts_find_nothing_farther():
    model, images, labels = linear_problem(3, N, active_box=True)
    threat = ThreatModel("linf", 0.05)
    one, many = (
        search(model, images, labels, threat, steps=6, classes=0, starts=starts)[0].distances
        for starts in (1, 4)
    )
    assert (many <= one * (1 + 1e-3)).all()
