"""Searches without trust in gradients: known answers on linear models, hidden gradients, draws."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.randomness import read_randomness
from bench.searches import margin_steps, random_points, smoothed, square
from bench.searches.squares import _bump, _side
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.toys import Linear, NoisyLinear, classifier, exact_distance, linear_problem

N = 20
SEARCHES = {
    "square": (square, {"queries": 700}),
    "smoothed": (smoothed, {}),
    "margin_steps": (margin_steps, {"steps": 50}),
    "random_points": (random_points, {"points": 1500}),
}
# Of the exact distance: what each search has to reach on a linear model with 16 pixels.
REACH = {"square": 0.93, "smoothed": 0.8, "margin_steps": 0.97, "random_points": 0.6}


class Hidden(nn.Module):
    """The same function, whose gradient is zero."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images.detach()) + 0 * images.flatten(1).sum(1, keepdim=True)


@pytest.fixture(scope="module", params=["linf", "l2", "l1"])
def problem(request):
    model, images, labels = linear_problem(3, N, active_box=True)
    distance = exact_distance(model, images, labels, request.param)
    return model, images, labels, ThreatModel(request.param, float(np.median(distance))), distance


def run(name, model, images, labels, threat, rows=None, **victim):
    search, budget = SEARCHES[name]
    defended = model if isinstance(model, NoisyLinear) else classifier(model, 3)
    with frozen(defended):
        attacked = Victim(defended, np.arange(len(images)), **victim)
        rows = torch.arange(len(images)) if rows is None else rows
        return search(attacked, images, labels, rows, threat, **budget), attacked


@pytest.mark.parametrize("name", SEARCHES)
def test_linear_models_fall_where_they_can_and_nowhere_else(name, problem):
    model, images, labels, threat, distance = problem
    result, _ = run(name, model, images, labels, threat)
    success = result.success.numpy()
    assert not (success & (distance > threat.eps * 1.0001)).any()
    assert success[distance < REACH[name] * threat.eps].all()
    assert threat.contains(result.points, images).all()
    wrong = model(result.points).argmax(1) != labels
    assert torch.equal(wrong, result.success)


@pytest.mark.parametrize("name", ["square", "smoothed", "random_points"])
def test_a_hidden_gradient_changes_nothing(name, problem):
    model, images, labels, threat, _ = problem
    seen, _ = run(name, model, images, labels, threat)
    hidden, victim = run(name, Hidden(model), images, labels, threat)
    assert torch.equal(seen.success, hidden.success)
    assert (victim.backwards == 0).all()


def test_margin_steps_needs_the_gradient(problem):
    model, images, labels, threat, _ = problem
    assert not run("margin_steps", Hidden(model), images, labels, threat)[0].success.any()


@pytest.mark.parametrize("name", SEARCHES)
def test_an_image_fares_alike_in_any_company(name, problem):
    model, images, labels, threat, _ = problem
    every, _ = run(name, model, images, labels, threat, batch_size=64)
    rows = torch.tensor([7, 2, 11])
    some, _ = run(name, model, images, labels, threat, rows, batch_size=5)
    assert torch.equal(every.success[rows], some.success)
    assert torch.allclose(every.points[rows], some.points, atol=1e-5)


def test_a_survivor_costs_the_whole_budget_and_a_broken_image_little():
    model, images, labels = linear_problem(3, 4, active_box=False)
    model = Linear(model.weight.detach().clone(), model.bias.detach().clone())
    passes = {"square": 700, "smoothed": 30 * 33 + 1, "margin_steps": 51, "random_points": 1500}
    for name, forwards in passes.items():
        _, victim = run(name, model, images, labels, ThreatModel("linf", 1e-5))
        assert (victim.forwards == forwards).all(), name
        _, victim = run(name, model, images, labels, ThreatModel("linf", 1.0))
        assert (victim.forwards < 100).all(), name
    assert (victim.backwards == 0).all()


@pytest.mark.parametrize("name", SEARCHES)
def test_fixed_noise_is_exact(name):
    """Under replay each image has one function: a success is one on its own noise."""
    model, images, labels = linear_problem(3, N, active_box=False)
    noisy, threat = NoisyLinear(model, 0.02), ThreatModel("linf", 0.02)
    result, victim = run(
        name, noisy, images, labels, threat, randomness=read_randomness("replay"), batch_size=7
    )
    assert 0 < result.success.sum() < N
    wrong = victim.verify(result.points)[:, 0] != labels
    assert torch.equal(wrong, result.success)


@pytest.mark.parametrize("name", SEARCHES)
def test_fresh_draws_are_several(name):
    """Where every draw of the sample is wrong, nearly all others are, and no image leaves early."""
    model, images, labels = linear_problem(3, N, active_box=False)
    noisy, threat = NoisyLinear(model, 0.01), ThreatModel("linf", 0.03)
    result, victim = run(name, noisy, images, labels, threat)
    assert len(set(victim.forwards.tolist())) == 1
    broken = result.success
    assert broken.sum() > N / 4
    judge = Victim(noisy, np.arange(N), randomness=read_randomness("replay-set:k=50"))
    errors = (judge.verify(result.points[broken]) != labels[broken, None]).float().mean()
    assert errors > 0.9


def test_infinite_logits_stop_nothing():
    """Where the true logit overflows, margins tie at NaN; the search walks on."""
    model, images, labels = linear_problem(3, N, active_box=False)

    class Overflowing(nn.Module):
        def forward(self, x):
            logits = model(x)
            top = logits.argmax(1, keepdim=True)
            return torch.zeros_like(logits).scatter(1, top, torch.inf)

    threat = ThreatModel("linf", 0.2)
    for name in ("square", "random_points"):
        assert run(name, Overflowing(), images, labels, threat)[0].success.any(), name


def test_the_window_shrinks():
    sides = [_side(query, 1000, 32, 32) for query in range(1, 1000)]
    assert sides[0] == 29 and sides[-1] == 1
    assert sides == sorted(sides, reverse=True)
    assert _side(1, 1000, 8, 32) == 8


@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_a_bump_is_of_unit_length(side):
    bump = _bump(side, torch.device("cpu"))
    assert bump.norm().item() == pytest.approx(1)
    if side % 2 == 0:
        assert bump.sum().item() == pytest.approx(0, abs=1e-6)


def test_steps_of_a_varying_length():
    """The falling step ends nearer to a maximum inside the ball than any step of one length."""
    lengths = []

    class Peak(nn.Module):
        """Margin -|x - 0.513| - 0.1: no success, a peak that large steps jump over."""

        def forward(self, x):
            lengths.append(float(x.detach().flatten()[0]))
            score = (x - 0.513).abs().flatten(1).sum(1) + 0.1
            return torch.stack([score, torch.zeros_like(score)], 1)

    images = torch.full((1, 1, 1, 1), 0.5)
    with frozen(classifier(Peak(), 2)) as _:
        victim = Victim(classifier(Peak(), 2), np.arange(1))
        result = margin_steps(
            victim, images, torch.tensor([0]), torch.arange(1), ThreatModel("linf", 0.1), steps=40
        )
    assert abs(result.points.item() - 0.513) < 2e-3
    assert lengths[1] == pytest.approx(0.6)
