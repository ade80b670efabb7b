"""GradRefine: which gradients agree, and what a step makes of them."""

from dataclasses import replace

import pytest
import torch
from bench_defenses.adversarial import trainer
from bench_defenses.adversarial.gradrefine import GradRefine
from bench_defenses.adversarial.trainer import (
    Schedule,
)
from torch import nn

from tests.defenses.adversarial.helpers import ONCE, rng, same

ROWS = torch.tensor(
    [
        [0.4, 0.3, -0.2, 0, 0.1],
        [0.2, -0.1, -0.1, 0.5, -0.1],
        [-0.1, 0.2, -0.3, 0, 0.2],
        [0.3, -0.6, -0.1, 0, -0.3],
    ]
)


def refined(rows, threshold, size=None):
    refine = GradRefine(size or len(rows), threshold)
    for row in rows:
        refine.add([row[:2], row[2:].reshape(3, 1)])
    return torch.cat([part.flatten() for part in refine.take()])


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.5, [0.9, 0, -0.7, 0, 0]),
        (0.25, [0.9, 0, -0.7, 0.5, 0]),
        (0.75, [0, 0, -0.7, 0, 0]),
        (1.0, [0, 0, -0.7, 0, 0]),
        (0.0, [0.9, 0, -0.7, 0.5, 0]),
    ],
)
def test_gradrefine_sums_what_agrees(threshold, expected):
    assert torch.allclose(refined(ROWS, threshold), torch.tensor(expected), atol=1e-7)


def test_a_remainder_is_judged_by_its_own_size():
    assert torch.allclose(
        refined(ROWS[:2], 0.75, size=4), torch.tensor([0.6, 0, -0.3, 0, 0]), atol=1e-7
    )


def test_gradrefine_of_one_batch_is_that_batch():
    gradients = [torch.randn(4, 3, generator=rng()), torch.tensor([0.0, 1e-30, -1e30])]
    refine = GradRefine(1, 1.0)
    for _ in range(2):
        refine.add(gradients)
        assert refine.full
        assert (
            all(torch.equal(a, b) for a, b in zip(refine.take(), gradients, strict=True))
            and not refine.full
        )


def test_gradrefine_counts_beyond_a_byte_and_rounds_no_threshold_up():
    ones = torch.ones(300, 5)
    assert torch.equal(refined(ones, 1.0), torch.full((5,), 300.0))
    votes = torch.zeros(100, 5)
    votes[:7] = 1
    assert torch.equal(refined(votes, 0.07), torch.full((5,), 7.0)), (
        "7 of 100 are 0.07, though 0.07 * 100 is more than 7"
    )


def test_a_masked_element_still_moves_by_momentum_and_decay():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimiser = Schedule(1, 1, rate=0.1, decay=0.01).make_optimiser([weight])
    moves = []
    for gradient in (1.0, 0.0, 0.0):
        before = weight.item()
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
        moves.append(weight.item() - before)
    assert moves == pytest.approx([-0.1919, -0.0833, -0.0757], abs=5e-5)


def test_where_everything_is_masked_the_weights_still_decay(learn, teacher, monkeypatch):
    take = GradRefine.take
    monkeypatch.setattr(
        GradRefine, "take", lambda self: [torch.zeros_like(refined) for refined in take(self)]
    )
    student = learn(Schedule(epochs=1, batch=48, rate=0.1, decay=0.5, steps=1)).student
    for before, after in zip(teacher.parameters(), student.parameters(), strict=True):
        # v = wd theta; the step is lr (wd theta + 0.9 v).
        assert torch.allclose(after, (1 - 0.1 * 1.9 * 0.5) * before)


class Plain:
    """One batch a step, as plain descent has it."""

    full = True

    def __init__(self, size, threshold):
        assert size == 1

    def add(self, gradients):
        self.gradients = gradients

    def take(self):
        return self.gradients


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_groups_of_one_are_plain_descent(learn, monkeypatch, optimiser):
    schedule = replace(ONCE, epochs=2, optimiser=optimiser)
    refined = learn(schedule).student
    monkeypatch.setattr(trainer, "GradRefine", Plain)
    assert same(refined, learn(schedule).student)


def test_groups_step_together_and_the_last_one_may_be_smaller(learn, monkeypatch):
    counts = []

    class Counting(GradRefine):
        def take(self):
            counts.append(self.count)
            return super().take()

    monkeypatch.setattr(trainer, "GradRefine", Counting)
    learn(replace(ONCE, epochs=2, batch=10, group=3))
    assert counts == [3, 1, 3, 1], "48 images are four batches of 10"
