"""Attacks on the views of a defense."""

import numpy as np
import pytest
import torch
from bench_attacks.views import Views, ViewsParams, alarm_penalty, capped_margin, named
from torch import nn

from bench.defense import DefendedClassifier
from bench.errors import BadInput
from bench.testing import AttackContract
from bench.victim import Victim, frozen
from tests.defenses.testtime.helpers import THREAT, noise


class TestViewsContract(AttackContract):
    attack = "views:base"


class TestEvadeContract(AttackContract):
    attack = "evade:steps=10"


class Branches(DefendedClassifier):
    """Two linear branches; the first answers."""

    num_classes = 2

    def __init__(self, first, second):
        super().__init__()
        self.weights = nn.Parameter(torch.stack([first, second]))

    def views(self):
        return ("logits", "base", "branch:1", "branch:2")

    def forward_pass(self, gradient="full", view="logits"):
        row = 1 if view == "branch:2" else 0
        return lambda images, noise: (lambda s: torch.stack([s, -s], 1))(
            (images - 0.5).flatten(1) @ self.weights[row]
        )

    def forward(self, images, noise):
        return self.forward_pass()(images, noise)


def test_views_goes_on_until_all_views_err():
    first, second = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 1.0, 0, 0])
    model = Branches(first, second)
    images = torch.full((3, 1, 2, 2), 0.5)
    images[:, 0, 0] += torch.tensor([[0.02, 0.02], [0.02, 0.3], [0.3, 0.02]])
    labels = torch.zeros(3, dtype=torch.int64)
    with frozen(model):
        victim = Victim(model, np.arange(3))
        points = Views(ViewsParams(at="base+branch", steps=10))(
            victim, images, labels, THREAT
        ).points
        sums = [
            model.forward_pass("full", view)(points, noise(3))[:, 0]
            for view in ("branch:1", "branch:2")
        ]
    assert [bool(s < 0) for s in sums[0]] == [True, True, False]
    assert [bool(s < 0) for s in sums[1]] == [True, False, True]
    assert int(victim.forwards[0]) < int(victim.forwards[1]), "an image stops where all views err"


def test_a_point_that_breaks_the_answer_outranks_a_larger_sum():
    model = Branches(torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 50.0, 0, 0]))
    image, labels = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    with frozen(model):
        objective = Victim(model, np.arange(1)).joint(
            labels, dict.fromkeys(("branch:1", "branch:2"), capped_margin), until_all_err=True
        )
        broken, close = image.clone(), image.clone()
        broken[0, 0, 0] += torch.tensor([-0.01, 0.3])
        close[0, 0, 0] += torch.tensor([0.01, -0.3])
        values = [objective(x, torch.arange(1), 0, True) for x in (broken, close)]
    assert values[0].value > values[1].value and not values[0].success.any()
    assert values[0].gradient[0, 0, 0, 1] == -100


def test_names_of_views():
    offered = ("logits", "base", "detector", "branch:2", "branch:4")
    assert named(offered, ("base", "branch")) == ["base", "branch:2", "branch:4"]
    assert named(("logits", "features"), ("base", "branch")) == ["logits"]
    with pytest.raises(BadInput, match="no view 'brunch'"):
        named(offered, ("brunch",))


def test_what_the_attacks_on_views_maximise():
    """By hand: margins 5 (capped at 1) and -5; the alarm s = 2 with the slack of 1 weighs 3, a
    silent detector nothing.
    """
    logits = torch.tensor([[5.0, 0.0], [5.0, 0.0]])
    assert capped_margin(logits, torch.tensor([1, 0])).tolist() == [1.0, -5.0]
    alarms = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert alarm_penalty(0.5, alarms, torch.zeros(2, dtype=torch.long)).tolist() == [-1.5, 0.0]
