"""The search that reads answers alone: linear models, hidden values, budgets, draws."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from bench.data.dataset import ImageSet
from bench.randomness import read_randomness
from bench.searches import by_answers
from bench.searches.answers import most_queries, start_queries
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.toys import NoisyLinear, classifier, exact_distance, linear_problem

N = 16


class OneHot(nn.Module):
    """The answers of a network, which differ from their neighbours nowhere, without a gradient."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        logits = self.inner(x.detach())
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()


def search(model, images, labels, threat, *, rows=None, ids=None, randomness="fresh", **budget):
    defended = model
    if not isinstance(model, NoisyLinear):
        defended = classifier(model, int(model(images[:1]).shape[1]))
    everything = budget.pop("everything", ImageSet(images, labels, np.arange(len(images))))
    ids = np.arange(len(images)) if ids is None else ids
    victim = Victim(defended, ids, randomness=read_randomness(randomness), batch_size=256)
    victim.evaluated = everything
    rows = torch.arange(len(images)) if rows is None else rows
    with frozen(defended):
        return by_answers(victim, images, labels, rows, threat, **budget), victim


@pytest.mark.parametrize("active_box", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_with_two_classes_distances_of_linear_models_are_found(norm, active_box):
    """After 5,000 queries and 16 pixels within 2 %; never below the exact distance."""
    model, images, labels = linear_problem(2, N, active_box=active_box)
    exact = exact_distance(model, images, labels, norm)
    found, _ = search(
        OneHot(model), images, labels, ThreatModel(norm, 0.1), queries=5000, until_inside=False
    )
    ratio = found.distances.numpy() / exact
    assert ratio.min() > 0.999 and np.median(ratio) < 1.01 and np.quantile(ratio, 0.9) < 1.02
    assert (model(found.points).argmax(1) != labels).all()


def test_among_more_classes_it_may_end_at_a_farther_one():
    model, images, labels = linear_problem(3, N, active_box=True)
    exact = exact_distance(model, images, labels, "l2")
    found, _ = search(
        model, images, labels, ThreatModel("l2", 0.1), queries=5000, until_inside=False
    )
    ratio = found.distances.numpy() / exact
    assert ratio.min() > 0.999 and np.median(ratio) < 1.05


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_queries_find_nothing_farther(norm):
    model, images, labels = linear_problem(3, N, active_box=True)
    asked = [
        search(model, images, labels, ThreatModel(norm, 0.1), queries=queries, until_inside=False)
        for queries in (250, 500, 1200, 2500)
    ]
    least = [found.distances for found, _ in asked]
    assert all((later <= sooner).all() for sooner, later in pairwise(least))
    assert (least[-1] < 0.9 * least[0]).float().mean() > 0.5


def test_no_image_costs_more_than_is_told_and_no_gradient_is_asked_for():
    model, images, labels = linear_problem(3, N, active_box=True)
    for queries in (250, 900):
        _, victim = search(
            model, images, labels, ThreatModel("l2", 0.01), queries=queries, until_inside=False
        )
        told = most_queries(queries)
        assert told <= queries and victim.forwards.max() <= told
        # Steps that succeed at once, and starts that are right, are all that may be saved.
        assert victim.forwards.min() > told - start_queries() - 9 * (queries // 100)
        assert victim.backwards.sum() == 0


def test_an_image_leaves_inside_the_ball():
    model, images, labels = linear_problem(3, N, active_box=True)
    eps = 1.3 * float(np.median(exact_distance(model, images, labels, "l2")))
    threat = ThreatModel("l2", eps)
    found, victim = search(model, images, labels, threat, queries=3000)
    inside = found.distances <= eps
    assert threat.contains(found.inside, images).all()
    assert ((model(found.inside).argmax(1) != labels) == inside).all()
    assert inside.sum() > 3
    assert victim.forwards[inside].max() < victim.forwards[~inside].min()


@pytest.mark.parametrize("randomness", ["fresh", "replay"])
def test_an_image_stands_alone(randomness):
    model, images, labels = linear_problem(3, 8, active_box=True)
    noisy = model if randomness == "fresh" else NoisyLinear(model, 0.02)
    everything = ImageSet(images, labels, np.arange(8))
    asked = {"randomness": randomness, "queries": 600, "until_inside": False}
    threat = ThreatModel("l2", 0.1)
    together, _ = search(noisy, images, labels, threat, **asked)
    order = torch.tensor([5, 2, 7, 0])
    some, _ = search(
        noisy,
        images[order],
        labels[order],
        threat,
        ids=order.numpy(),
        everything=everything,
        **asked,
    )
    rows, _ = search(noisy, images, labels, threat, rows=order, **asked)
    for other in (some, rows):
        assert torch.allclose(other.distances, together.distances[order], rtol=1e-3)
        assert torch.allclose(other.points, together.points[order], atol=1e-3)


def test_under_fresh_draws_it_follows_the_majority():
    model, images, labels = linear_problem(2, N, active_box=False)
    exact = exact_distance(model, images, labels, "l2")
    noisy = NoisyLinear(model, 0.01)
    found, _ = search(noisy, images, labels, ThreatModel("l2", 0.1), queries=3000, draws=5)
    assert np.abs(found.distances.numpy() - exact).max() < 4 * 0.01 + 0.05 * exact.max()
    # The rim of the ball, in the direction that was found.
    clear = exact < 0.05
    assert clear.any() and (model(found.inside).argmax(1) != labels)[clear].all()


def test_a_constant_answer_is_not_broken():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    images, labels = torch.full((4, 1, 4, 4), 0.3), torch.zeros(4, dtype=torch.int64)
    found, victim = search(Constant(), images, labels, ThreatModel("l2", 0.1), queries=500)
    assert torch.isinf(found.distances).all() and torch.equal(found.inside, images)
    assert victim.forwards.tolist() == [6] * 4


def test_another_norm_is_refused():
    model, images, labels = linear_problem(2, 2, active_box=False)
    with pytest.raises(ValueError, match="linf and l2"):
        search(model, images, labels, ThreatModel("l1", 0.1))
