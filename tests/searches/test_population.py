"""Crossing points of a population: flat walls whose best point is known, and the told budget."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from bench.losses import margin
from bench.maximise import Reading, ascend
from bench.randomness import read_randomness
from bench.searches import margin_steps
from bench.searches.population import _MOMENTUM, _Population, crossover, passes
from bench.searches.search import accumulated
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.toys import Linear, NoisyLinear, classifier, exact_distance, linear_problem

DOWN, ACROSS, SIDE, EPS = 3, 4, 3, 0.2
BLOCKS, PIXELS = DOWN * ACROSS, SIDE**2
GOOD, WALL = 1.5, 0.1
BUDGET = {"population": 64, "generations": 12}


def spread(blocks):
    """Each number as a block of pixels: (..., DOWN, ACROSS) to (..., 9, 12)."""
    return blocks.repeat_interleave(SIDE, -2).repeat_interleave(SIDE, -1)


class Walls(nn.Module):
    """A ReLU network with 2^12 local maxima, the best of which lies behind twelve flat walls.

    With m in [-1, 1] the mean of a block of the image, in eps around grey, the wrong logit is the
    sum over blocks of relu(-m) + c relu(m - 0.1), c such that the right end is worth 1.5: a slope
    down to the left end, worth 1, nothing between 0 and 0.1, and a rise behind. The true logit
    stands `gap` below the sum of all right ends.
    """

    def __init__(self, gap: float) -> None:
        super().__init__()
        places = torch.eye(BLOCKS).reshape(BLOCKS, DOWN, ACROSS)
        mean, rise = spread(places).flatten(1) / (PIXELS * EPS), GOOD / (1 - WALL)
        shift = torch.full((BLOCKS,), 0.5 / EPS)
        self.hidden = Linear(torch.cat([-mean, mean]), torch.cat([shift, -shift - WALL]))
        worth = torch.tensor([1.0] * BLOCKS + [rise] * BLOCKS)
        bias = torch.tensor([GOOD * BLOCKS - gap, 0.0])
        self.last = Linear(torch.stack([0 * worth, worth]), bias)

    def forward(self, images):
        return self.last(self.hidden(images).relu())


class Hidden(nn.Module):
    """The same function, whose gradient is zero."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images.detach()) + 0 * images.flatten(1).sum(1, keepdim=True)


def walls(gap):
    images = torch.full((1, 1, DOWN * SIDE, ACROSS * SIDE), 0.5)
    return Walls(gap), images, torch.zeros(1, dtype=torch.int64), ThreatModel("linf", EPS)


def run(model, images, labels, threat, rows=None, budget=None, **victim):
    defended = model if isinstance(model, NoisyLinear) else classifier(model, 3)
    with frozen(defended):
        attacked = Victim(defended, np.arange(len(images)), **victim)
        rows = torch.arange(len(images)) if rows is None else rows
        return crossover(attacked, images, labels, rows, threat, **(budget or BUDGET)), attacked


def test_the_best_corner_is_the_one_behind_all_walls():
    """The margin is convex in each block's mean, so it is largest where each is at an end."""
    model, images, labels, _ = walls(0.1)
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=BLOCKS)))
    logits = model(0.5 + EPS * spread(signs.reshape(-1, 1, DOWN, ACROSS))).detach()
    values = logits[:, 1] - logits[:, 0]
    assert values.argmax() == len(values) - 1
    assert values[-1] == pytest.approx(0.1, abs=1e-4)
    assert values[:-1].max() == pytest.approx(-0.4, abs=1e-4)


def test_it_passes_walls_that_stop_gradients():
    """A child that crosses nothing never does: no block comes back from its left end. The search
    ends with the generation that breaks the image.
    """
    model, images, labels, threat = walls(0.1)
    found, victim = run(model, images, labels, threat)
    assert found.success.all()
    assert threat.contains(found.points, images).all()
    double = Walls(0.1).double()(found.points.double())
    assert (double[:, 1] > double[:, 0]).all()
    spent = victim.forwards + victim.backwards
    _, longer = run(model, images, labels, threat, budget={**BUDGET, "generations": 40})
    assert torch.equal(longer.forwards + longer.backwards, spent)

    starts = torch.Generator().manual_seed(0)
    signs = (torch.rand(300, *images.shape[1:], generator=starts) < 0.5).float()
    many, zeros = images.expand(300, -1, -1, -1), torch.zeros(300, dtype=torch.int64)
    with frozen(network := classifier(model, 2)):
        ascended = margin_steps(
            Victim(network, np.arange(300)),
            many,
            zeros,
            torch.arange(300),
            threat,
            start=many + EPS * (2 * signs - 1),
        )
    assert not ascended.success.any()


def test_it_breaks_nothing_that_is_unbreakable():
    """And comes to the known best margin; a survivor costs the told passes."""
    model, images, labels, threat = walls(-0.05)
    found, victim = run(model, images, labels, threat)
    assert not found.success.any()
    assert found.margins.tolist() == pytest.approx([-0.05], abs=1e-4)
    told = passes(64, 2, 12)
    assert (victim.forwards.item(), victim.backwards.item()) == told


def test_no_generation_is_worse_than_the_one_before():
    """Without a gradient, so that no ascent makes good what a child lost. More starts are no
    worse either: the best of all of them stay.
    """
    model, images, labels, threat = walls(0.1)
    members = torch.zeros(16, dtype=torch.int64)
    with frozen(network := classifier(Hidden(model), 2)):
        victim = Victim(network, np.arange(1))
        objective = victim.objective(labels, margin, rows=members)
        noise = victim.random(members[:1])
        once, population = (_Population(objective, images[members], threat, noise) for _ in "ab")
        once.begin(1)
        population.begin(2)
        before = once.values.sort().values
        for number in range(3):
            now = population.values.sort().values
            assert (now >= before).all() and (now > before).any()
            read = objective(population.points, members, 0, False).value
            assert torch.allclose(read, population.values)
            before = now
            population.cross(number)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_linear_models_fall_where_they_can_and_nowhere_else(norm):
    model, images, labels = linear_problem(3, 10, active_box=True)
    distance = exact_distance(model, images, labels, norm)
    threat = ThreatModel(norm, float(np.median(distance)))
    found, _ = run(
        model, images, labels, threat, budget={"population": 2, "starts": 1, "generations": 1}
    )
    success = found.success.numpy()
    assert not (success & (distance > threat.eps * 1.0001)).any()
    assert success[distance < 0.98 * threat.eps].all()
    assert threat.contains(found.points, images).all()
    assert torch.equal(model(found.points).argmax(1) != labels, found.success)


def test_an_image_fares_alike_in_any_company():
    model, images, labels = linear_problem(3, 12, active_box=True)
    distance = exact_distance(model, images, labels, "linf")
    threat = ThreatModel("linf", float(np.median(distance)))
    budget = {"population": 3, "starts": 1, "generations": 1}
    every, _ = run(model, images, labels, threat, budget=budget)
    rows = torch.tensor([7, 2, 11])
    some, _ = run(model, images, labels, threat, rows, budget, batch_size=5)
    assert torch.equal(every.success[rows], some.success)
    assert torch.allclose(every.points[rows], some.points, atol=1e-5)


def test_fixed_noise_is_exact_and_fresh_noise_is_refused():
    model, images, labels = linear_problem(3, 12, active_box=False)
    noisy, threat = NoisyLinear(model, 0.02), ThreatModel("linf", 0.02)
    budget = {"population": 3, "starts": 1, "generations": 1}
    replay = read_randomness("replay")
    found, victim = run(noisy, images, labels, threat, budget=budget, randomness=replay)
    assert 0 < found.success.sum() < 12
    assert torch.equal(victim.verify(found.points)[:, 0] != labels, found.success)
    with pytest.raises(ValueError, match="fixed"):
        run(noisy, images, labels, threat, budget=budget)


def test_summed_gradients_leave_a_seam():
    """x + y - 2 |x - y| rises along the seam x = y; plain sign steps go to and fro across it."""

    def seam(x, rows, iteration, gradient):
        leaf = x.detach().requires_grad_(True)
        a, b = leaf[:, 0, 0, 0], leaf[:, 0, 0, 1]
        value = a + b - 2 * (a - b).abs()
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        return Reading(value.detach(), slope, torch.zeros(len(x), dtype=torch.bool))

    images = torch.full((1, 1, 1, 2), 0.5)
    start, threat = images + torch.tensor([0.01, -0.01]), ThreatModel("linf", 0.3)
    plain, summed = (
        ascend(objective, start, images, threat, steps=60, size=0.02).values.item()
        for objective in (seam, accumulated(seam, start, _MOMENTUM))
    )
    assert plain < 1.1
    assert summed > 1.5


def test_points_without_a_gradient_are_crossed_all_the_same():
    """Their best is better than that of the corners they come from."""
    model, images, labels, threat = walls(0.1)

    corners, crossed = (
        run(Hidden(model), images, labels, threat, budget={"generations": count})[0].margins.item()
        for count in (0, 6)
    )
    assert crossed > corners + 0.5


def test_a_flat_model_is_survived():
    model = Linear(torch.zeros(3, 16), torch.tensor([1.0, 0.0, 0.0]))
    images, labels = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    found, _ = run(
        model, images, labels, ThreatModel("l2", 0.1), budget={"population": 2, "generations": 1}
    )
    assert found.margins.tolist() == [-1.0]
    assert torch.isfinite(found.points).all()
