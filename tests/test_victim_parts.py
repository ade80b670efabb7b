"""A victim of some images, draws one by one, and whose images another library asks about."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.contract.toys import Quantised
from bench.losses import margin
from bench.maximise import Trace
from bench.randomness import Query, read_randomness
from bench.victim import MERGING, SEARCHING, Victim, frozen
from tests.toys import NoisyLinear, classifier, linear_problem, message

ROWS = torch.tensor([4, 1, 3])


def problem(n=6):
    inner, images, labels = linear_problem(3, n, active_box=False)
    return classifier(inner, 3), images, labels


# Parts --------------------------------------------------------------------------------------------


def test_a_part_counts_for_the_whole_and_has_its_images():
    model, images, labels = problem()
    victim = Victim(model, np.arange(10, 16))
    victim.places = np.arange(20, 26)
    with victim.part(ROWS) as seen:
        assert seen.ids.tolist() == [14, 11, 13] and seen.places.tolist() == [24, 21, 23]
        seen.objective(labels[ROWS], margin)(images[ROWS][:2], torch.arange(2), 0, True)
        same = seen.random(torch.arange(3)).uniform("a")
    assert victim.forwards.tolist() == victim.backwards.tolist() == [0, 1, 0, 0, 1, 0]
    assert victim.slopes.asked.tolist() == [0, 1, 0, 0, 1, 0]
    assert torch.equal(same, victim.random(ROWS).uniform("a"))


def test_a_part_of_a_part_counts_and_traces_the_right_images():
    model, images, labels = problem()
    victim = Victim(model, np.arange(6), base=lambda: model)
    victim.trace = Trace()
    with victim.part(ROWS) as seen, seen.part(torch.tensor([2]), of_base=True) as inner:
        inner.objective(labels[3:4], margin)(images[3:4], torch.arange(1), 0, True)
    with victim.part(ROWS) as seen:
        seen.objective(labels[ROWS], margin)(images[ROWS], torch.arange(3), 0, True)
    assert victim.forwards.tolist() == [0, 1, 0, 2, 1, 0]
    assert list(victim.trace.paths(0)) == [3]
    assert sorted(victim.trace.paths(1 << 16)) == [1, 3, 4]


def test_the_base_in_the_defenses_place_shows_no_success():
    model, images, labels = problem()
    wrong = (labels + 1) % 3
    victim = Victim(Quantised(model), np.arange(6), base=lambda: model)
    with victim.part(ROWS, of_base=True) as base:
        reading = base.objective(wrong[ROWS], margin)(images[ROWS], torch.arange(3), 0, True)
        logits = base.logits(images[ROWS], torch.arange(3), Query())[:, 0]
    assert not reading.success.any() and not base.deterministic and base.fixed
    assert torch.equal(logits, model(images[ROWS])) and reading.gradient.abs().sum() > 0
    alone = Victim(model, np.arange(6))

    def ask():
        with alone.part(ROWS, of_base=True):
            pass

    assert "undefended classifier" in message(ask)


class Blind(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.detach())


@pytest.mark.parametrize(("second", "blocked"), [(Blind, True), (None, False)])
def test_gradients_are_missing_where_every_part_lacks_them(second, blocked):
    model, images, labels = problem()
    blind = classifier(Blind(model.network), 3)
    victim = Victim(blind, np.arange(6), base=lambda: blind if second else model)
    for of_base in (False, True):
        with victim.part(ROWS, of_base=of_base) as seen:
            seen.objective(labels[ROWS], margin)(images[ROWS], torch.arange(3), 0, True)
    assert victim.gradient_blocked is blocked


# Draws one by one ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("law", "k"), [("fresh", 4), ("eot:k=3", 3), ("replay-set:k=2", 2)])
def test_draws_one_by_one_are_those_of_the_query(law, k):
    inner, images, labels = linear_problem(3, 5, active_box=False)
    rows = torch.tensor([3, 0])
    with frozen(inner):
        victim = Victim(NoisyLinear(inner, 0.1), np.arange(5), randomness=read_randomness(law))
        seen = victim.draw_by_draw(images[rows], rows, labels, margin, Query(1, 2), draws=4)
        assert seen.values.shape == (2, k) and seen.gradients.shape == (2, k, 1, 4, 4)
        assert victim.forwards.tolist() == victim.backwards.tolist() == [k, 0, 0, k, 0]
        assert victim.slopes.asked.tolist() == [k, 0, 0, k, 0]
        assert not torch.equal(seen.values[:, 0], seen.values[:, 1])
        if law != "fresh":
            reading = victim.objective(labels, margin, rows=rows, restart=1)(
                images[rows], torch.arange(2), 2, True
            )
            assert torch.allclose(seen.values.mean(1), reading.value, atol=1e-6)
            assert torch.allclose(seen.gradients.mean(1), reading.gradient, atol=1e-6)
        small = Victim(
            NoisyLinear(inner, 0.1), np.arange(5), randomness=read_randomness(law), batch_size=2
        )
        again = small.draw_by_draw(images[rows], rows, labels, margin, Query(1, 2), draws=4)
        assert torch.allclose(again.gradients, seen.gradients, atol=1e-6)


def test_scores_of_another_purpose_are_of_other_draws():
    inner, images, labels = linear_problem(3, 5, active_box=False)
    victim, rows = Victim(NoisyLinear(inner, 0.1), np.arange(5)), torch.arange(5)
    one, two, again = (
        victim.score(images, rows, labels, margin, 3, purpose=purpose)
        for purpose in (SEARCHING, MERGING, SEARCHING)
    )
    assert torch.equal(one, again) and not torch.equal(one, two)


# Whose images -------------------------------------------------------------------------------------


def counted(ask, n=6, eps=0.05):
    """Forward passes an image, of what is asked of the victim as a function."""
    model, images, _ = problem(n)
    images = images.clone()
    victim = Victim(model, np.arange(n))
    function = victim.as_function(images)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    ask(function, images + eps * (2 * noise - 1), images)
    return victim.forwards.tolist()


def test_points_are_recognised_whatever_was_asked_before():
    def ask(function, points, images):
        for rows in ([0, 2, 5], [0, 2, 5], [1, 2, 5], [5, 2, 1], [3]):
            function(points[rows])

    assert counted(ask) == [2, 2, 4, 1, 0, 4]


def test_points_far_away_count_for_the_nearest_image():
    def ask(function, points, images):
        function(points[[4, 1]])
        # In a sampled pixel they are further off than half way to another image.
        far = images[[4, 1]].clone()
        far[:, 0, 0, 0] += 0.15
        function(far)
        function(images[[1, 4]])

    assert counted(ask) == [0, 3, 0, 0, 3, 0]


def test_what_is_expected_is_not_looked_at():
    def ask(function, points, images):
        function.expect(torch.tensor([5, 3, 0]))
        function(points[[5, 3, 0]])
        function(points[[5, 0]])
        function(points[[5, 0]] * 0)
        function.expect(torch.tensor([1, 2]))
        function(points[[1, 2]])
        function(points[[2]])

    assert counted(ask) == [3, 1, 2, 1, 0, 3]


def test_images_that_are_alike_cost_a_look_and_no_mistake():
    model, images, _ = problem(4)
    images = images.clone()
    images[1] = images[0]
    victim = Victim(model, np.arange(4))
    function = victim.as_function(images)
    for _ in range(3):
        function(images[[0, 2, 3]] + 0.001)
    assert victim.forwards.tolist() == [3, 0, 3, 3]


def test_a_gradient_through_the_function_is_the_models_own():
    model, images, _ = problem()
    victim = Victim(model, np.arange(6))
    x, y = (images.clone().requires_grad_(True) for _ in range(2))
    (slope,) = torch.autograd.grad(victim.as_function(images)(x).logsumexp(1).sum(), x)
    (own,) = torch.autograd.grad(model(y).logsumexp(1).sum(), y)
    assert torch.equal(slope, own) and victim.backwards.tolist() == [1] * 6
    deaf = classifier(Blind(model.network), 3)
    with frozen(deaf):
        blind = Victim(deaf, np.arange(6))
        (none,) = torch.autograd.grad(blind.as_function(images)(x).sum(), x)
    assert not none.any() and blind.gradient_blocked and not blind.backwards.any()
