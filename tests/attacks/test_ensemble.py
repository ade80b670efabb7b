"""The ensemble: exact where the truth is known, its told budget, and verdicts that depend on the
image alone.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_attacks.ensemble import Ensemble, losses, schedule
from bench_attacks.ensemble.schedule import STAGES, Ascents, Crossings, Squares, Targets, passes
from torch import nn

from bench.attack import Passes
from bench.commands.info import describe
from bench.losses import margin
from bench.maximise import ascend
from bench.noise import Noise
from bench.plugins.create import ATTACKS
from bench.randomness import read_randomness
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.toys import (
    Linear,
    NoisyLinear,
    Unbreakable,
    attack_robust,
    classifier,
    exact_distance,
    linear_problem,
)

FAST = Ensemble(profile="fast")


def run(model, images, labels, threat, attack=FAST, ids=None, **victim):
    ids = np.arange(len(images)) if ids is None else ids
    with frozen(model):
        seen = Victim(model, ids, **victim)
        return attack.run(seen, images, labels, threat), seen


def only(monkeypatch, *stages):
    """The profile `fast` with these stages alone."""
    monkeypatch.setitem(STAGES, "fast", stages)
    return Ensemble(profile="fast")


# Known answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("active_box", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_is_exact_on_linear_models(norm, classes, active_box):
    model, images, labels = linear_problem(classes, 60, active_box=active_box)
    distance = exact_distance(model, images, labels, norm)
    threat = ThreatModel(norm, float(np.median(distance)))
    robust = attack_robust(classifier(model, classes), images, labels, FAST, threat)
    clear = abs(distance / threat.eps - 1) > 0.01
    assert (robust == (distance > threat.eps))[clear].all()


class Scaled(nn.Module):
    """A network whose logits pass through a last function."""

    def __init__(self, inner, last):
        super().__init__()
        self.inner, self.last = inner, last

    def forward(self, images):
        return self.last(self.inner(images))


SATURATED = {
    "steep": lambda logits: 1e4 * logits,
    "flat": lambda logits: 1e-4 * logits,
    "probabilities": lambda logits: (logits / 8).softmax(1),
}


@pytest.mark.parametrize("kind", SATURATED)
def test_saturated_logits_hide_nothing(kind):
    model, images, labels = linear_problem(10, 40, active_box=False)
    distance = exact_distance(model, images, labels, "linf")
    threat = ThreatModel("linf", float(np.median(distance)))
    scaled = classifier(Scaled(model, SATURATED[kind]), 10)
    robust = attack_robust(scaled, images, labels, FAST, threat)
    clear = abs(distance / threat.eps - 1) > 0.02
    assert (robust == (distance > threat.eps))[clear].all()


@pytest.mark.parametrize("floor", [-1e9, -torch.inf])
def test_masked_classes_change_no_verdict(floor):
    """Two of the twelve classes are never answered; the others are a linear model of ten."""
    model, images, labels = linear_problem(10, 40, active_box=False)
    distance = exact_distance(model, images, labels, "linf")
    threat = ThreatModel("linf", float(np.median(distance)))
    masked = Scaled(model, lambda z: torch.cat([z, torch.full_like(z[:, :2], floor)], 1))
    robust = attack_robust(classifier(masked, 12), images, labels, FAST, threat)
    clear = abs(distance / threat.eps - 1) > 0.01
    assert (robust == (distance > threat.eps))[clear].all()


# The budget ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["fast", "standard"])
@pytest.mark.parametrize("classes", [2, 10, 16])
def test_what_nothing_breaks_costs_the_told_budget(profile, classes, monkeypatch):
    if classes == 16:
        targets = replace(STAGES["standard"][4], most=4)
        monkeypatch.setitem(STAGES, profile, (targets, Squares("square", 5)))
        assert targets.candidates(16) == 12
    images = torch.full((3, 1, 4, 4), 0.5)
    labels = torch.zeros(3, dtype=torch.int64)
    model, threat = classifier(Unbreakable(classes), classes), ThreatModel("linf", 0.1)
    found, victim = run(model, images, labels, threat, Ensemble(profile=profile))
    told = passes(STAGES[profile], classes, near=False)
    assert (victim.forwards.tolist(), victim.backwards.tolist()) == (
        [told.forward] * 3,
        [told.backward] * 3,
    )
    assert found.stages.tolist() == [-1] * 3


class Nearly(nn.Module):
    """The margin rises from -1 at the image 0.5 to minus what it lacks at 0.6."""

    def __init__(self, lacks):
        super().__init__()
        self.lacks = lacks

    def forward(self, images):
        mean = images.flatten(1).mean(1)
        value = -1 + (1 - self.lacks) * 10 * (mean - 0.5)
        return torch.stack([torch.zeros_like(value), value], 1)


@pytest.mark.parametrize(("lacks", "near"), [(0.19, True), (0.21, False)])
def test_an_image_that_is_nearly_broken_is_searched_longer(lacks, near):
    """Mutations: the share is of 1 instead of the clean margin, or of the image's own value."""
    images, labels = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    model = classifier(Scaled(Nearly(lacks), lambda logits: 7 * logits), 2)
    _, victim = run(model, images, labels, ThreatModel("linf", 0.1))
    assert victim.backwards.item() == passes(STAGES["fast"], 2, near).backward


def test_under_fresh_draws_near_is_wrong_in_some():
    inner, images, labels = linear_problem(4, 14, active_box=False)
    model, threat = NoisyLinear(inner, 0.005), ThreatModel("linf", 0.003)
    _, victim = run(model, images, labels, threat, randomness=read_randomness("fresh"))
    costs = {passes(STAGES["fast"], 4, near).backward for near in (False, True)}
    assert set(victim.backwards.tolist()) == costs


def test_info_and_the_page_tell_the_budgets():
    page = (Path(__file__).parents[2] / "docs/reference/attacks.md").read_text()
    described = describe("ensemble", {"attacks": ATTACKS})
    for profile, stages in STAGES.items():
        (told,) = re.findall(rf"{profile} ([\d,]*\d(?: or [\d,]*\d)?)", described["note"])
        costs = [int(cost.replace(",", "")) for cost in told.split(" or ")]
        assert costs == sorted({passes(stages, near=near).total for near in (False, True)})
        assert f"| `ensemble:{profile}` | {told} |" in page
    assert "not the reference AutoAttack" in described["note"]


def test_the_profiles_cost_what_they_were_made_for():
    """AutoAttack costs 9,767 passes; a third of its time, with backward passes twice as long."""
    assert passes(STAGES["fast"], near=False).total <= 9767 / 30
    assert passes(STAGES["fast"]).total <= 9767 / 12
    assert passes(STAGES["standard"]).total <= 9767 / 3
    assert passes(STAGES["strong"]).total > passes(STAGES["standard"]).total


def test_an_image_leaves_at_its_first_success():
    model, images, labels = linear_problem(10, 20, active_box=False)
    distance = exact_distance(model, images, labels, "linf")
    threat = ThreatModel("linf", float(np.sort(distance)[-1] * 0.999))
    _, victim = run(classifier(model, 10), images, labels, threat)
    spent = victim.forwards + victim.backwards
    assert spent[distance.argmax()] == passes(STAGES["fast"], 10).total
    assert spent[distance < 0.5 * threat.eps].max() < 10


# Each stage ---------------------------------------------------------------------------------------


def test_records_tell_the_stage(monkeypatch):
    """What the first stage breaks, what was wrong before, and what nobody breaks."""
    model, images, labels = linear_problem(10, 12, active_box=False)
    distance = exact_distance(model, images, labels, "linf")
    labels = labels.clone()
    labels[0] = (labels[0] + 1) % 10
    threat = ThreatModel("linf", float(np.median(distance)))
    found, _ = run(classifier(model, 10), images, labels, threat)
    assert found.stages[0] == -2
    survivors = torch.from_numpy(distance > 1.01 * threat.eps)
    assert (found.stages[1:][survivors[1:]] == -1).all()
    assert (found.stages[1:][~survivors[1:]] >= 0).all()
    assert FAST.stages == tuple(stage.name for stage in STAGES["fast"])


class Decoy(nn.Module):
    """Class 1 is the nearest by its logit and out of reach; class 2 is far and within reach.

    On the bar x in [0, 1], the true logit is 0. Class 1 rises to the right up to -0.1 and stops;
    class 2 rises to the left and becomes positive at x = 0.2, where class 1 is far below.
    """

    def forward(self, images):
        x = images.flatten(1).mean(1)
        first = -0.1 - (0.9 - x).clamp_min(0)
        second = 10 * (0.2 - x) - 0.01
        true = torch.zeros_like(x)
        return torch.stack([true, first, second], 1)


def test_targets_find_what_the_margin_moves_away_from(monkeypatch):
    """Mutations that this catches: one target alone, and targets that the margin's gradient
    replaces.
    """
    images, labels = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    model, threat = classifier(Decoy(), 3), ThreatModel("linf", 0.45)
    untargeted = only(monkeypatch, Ascents("margin", losses.margin_at, 20, "image"))
    found, _ = run(model, images, labels, threat, untargeted)
    assert found.stages.tolist() == [-1, -1]
    targeted = only(monkeypatch, Targets("targets", 14, 9, "image"))
    found, _ = run(model, images, labels, threat, targeted)
    assert found.stages.tolist() == [0, 0]


class Staircase(nn.Module):
    """Right wherever the gradient is asked for; the mean falls in steps of zero slope."""

    def forward(self, images):
        mean = images.flatten(1).mean(1)
        steps = (mean * 32).floor() / 32 + 0 * mean
        return torch.stack([torch.full_like(mean, 0.75), steps], 1)


def test_squares_break_what_has_no_gradient(monkeypatch):
    images, labels = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    model, threat = classifier(Staircase(), 2), ThreatModel("linf", 0.4)
    found, _ = run(model, images, labels, threat)
    assert found.stages.tolist() == [FAST.stages.index("square")] * 2
    gradients = only(monkeypatch, *STAGES["fast"][:-3])
    assert run(model, images, labels, threat, gradients)[0].stages.tolist() == [-1, -1]


def test_what_survives_is_left_at_its_largest_margin(monkeypatch):
    """A later stage that does worse, here one random point, does not replace it."""
    model, images, labels = linear_problem(10, 10, active_box=False)
    distance = exact_distance(model, images, labels, "linf")
    threat = ThreatModel("linf", float(distance.min() * 0.9))
    first = Ascents("margin", losses.margin_at, 20, "image")
    network = classifier(model, 10)
    alone, _ = run(network, images, labels, threat, only(monkeypatch, first))
    attack = only(monkeypatch, first, Squares("square", 1))
    found, _ = run(network, images, labels, threat, attack)
    assert torch.equal(found.points, alone.points)
    assert (margin(model(found.points), labels) > margin(model(images), labels)).all()


class Walls(nn.Module):
    """Each quarter of the image is worth 1 at its dark end and 1.5 at its bright end, which lies
    behind a stretch without a slope; only four bright ends are a success.
    """

    def forward(self, images):
        m = (nn.functional.avg_pool2d(images, 3).flatten(1) - 0.5) / 0.2
        value = ((-m).relu() + 1.5 / 0.7 * (m - 0.3).relu()).sum(1)
        return torch.stack([torch.full_like(value, 5.9), value], 1)


def test_crossing_breaks_what_ascents_leave(monkeypatch):
    """And a survivor of it costs its told budget."""
    images, labels = torch.full((1, 1, 6, 6), 0.5), torch.zeros(1, dtype=torch.int64)
    model, crossing = classifier(Walls(), 2), Crossings("crossover", 32, 1, 6)
    ascents = (*STAGES["fast"][:3], Ascents("corners", losses.margin_at, 20, "corner", 10))
    attack = only(monkeypatch, *ascents, crossing)
    found, _ = run(model, images, labels, ThreatModel("linf", 0.2), attack)
    assert found.stages.tolist() == [len(ascents)]
    found, victim = run(model, images, labels, ThreatModel("linf", 0.19), attack)
    told = passes((*ascents, crossing), 2)
    assert found.stages.tolist() == [-1]
    assert (victim.forwards.item(), victim.backwards.item()) == (told.forward, told.backward)


class Seam(nn.Module):
    """Of images of two pixels; the margin x + y - 2 |x - y| - 1.4 rises along the seam x = y."""

    def forward(self, images):
        x, y = images.flatten(1).unbind(1)
        value = x + y - 2 * (x - y).abs() - 1.4
        return torch.stack([torch.zeros_like(value), value], 1)


def test_gradients_are_summed_up_along_a_seam(monkeypatch):
    """Without their sum the search goes to and fro across the seam, and ends at 1.0 of 1.4."""
    images, labels = torch.tensor([[[[0.53, 0.47]]]]), torch.zeros(1, dtype=torch.int64)
    model, threat = classifier(Seam(), 2), ThreatModel("linf", 0.3)
    attack = only(monkeypatch, Ascents("margin", losses.margin_at, 20, "image"))
    assert run(model, images, labels, threat, attack)[0].stages.tolist() == [0]


def test_crossing_is_left_out_under_fresh_draws(monkeypatch):
    inner, images, labels = linear_problem(3, 4, active_box=False)
    model, threat = NoisyLinear(inner, 0.05), ThreatModel("linf", 1e-4)
    attack = only(
        monkeypatch, Ascents("margin", losses.margin_at, 2, "image"), Crossings("x", 2, 1, 1)
    )
    found, victim = run(model, images, labels, threat, attack, randomness=read_randomness("fresh"))
    assert [one.name for one in found.findings] == ["stage-left-out"]
    assert (victim.backwards == 2).all()
    found, victim = run(model, images, labels, threat, attack, randomness=read_randomness("replay"))
    assert found.findings == ()
    assert victim.backwards.max() == passes(attack.schedule).backward


# Losses -------------------------------------------------------------------------------------------

LOSSES = {
    "margin": losses.margin_at,
    "scaled": losses.scaled_at,
}


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.75])
@pytest.mark.parametrize("name", LOSSES)
def test_the_value_of_each_loss_is_the_margin(name, progress):
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1e9], [2.0, 1.0, -torch.inf]])
    labels = torch.tensor([0, 0, 0])
    leaf = logits.clone().requires_grad_(True)
    value = LOSSES[name](progress)(leaf, labels)
    assert torch.equal(value.detach(), margin(logits, labels))
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.isfinite(slope).all() and slope[0].any()


def test_a_masked_target_leaves_the_gradient_of_the_margin():
    leaf = torch.tensor([[2.0, 1.0, -torch.inf]], requires_grad=True)
    labels, targets = torch.tensor([0]), torch.tensor([2])
    value = losses.towards_at(labels, targets)(0.5).of(leaf, labels, torch.tensor([0]))
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    assert value.item() == -1.0
    assert slope.tolist() == [[-1.0, 1.0, 0.0]]


def test_the_scaled_loss_does_not_see_the_scale_of_logits():
    """Mutations: the gap not held fixed, or left out."""
    logits, labels = torch.tensor([[3.0, 1.0, 2.5, 0.0]]), torch.tensor([0])

    def slope(scale):
        leaf = (scale * logits).requires_grad_(True)
        (found,) = torch.autograd.grad(losses.scaled_at(0.0)(leaf, labels).sum(), leaf)
        return found * scale

    scaled = logits / 0.5
    p = scaled.softmax(1)
    p[0, 0] -= 1
    assert torch.allclose(slope(1.0), -p / -0.5 * 1.0, atol=1e-6)
    assert torch.allclose(slope(1e4), slope(1.0), atol=1e-5)


def test_far_targets_come_last(monkeypatch):
    """With more classes than targets, by gap over the length of its gradient: class 1 is near by
    its logit and nearly flat, class 2 farther and steep.
    """
    weight = torch.zeros(8, 16)
    weight[1, 0], weight[2] = 0.01, 1.0
    bias = torch.tensor([1.0, 0.5, -8.0, -30.0, -30.0, -30.0, -30.0, -30.0])
    model, threat = classifier(Linear(weight, bias), 8), ThreatModel("linf", 0.1)
    images, labels = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    attack = only(monkeypatch, Targets("targets", 14, 1, "image"))
    found, _ = run(model, images, labels, threat, attack)
    assert found.stages.tolist() == [0]


# Randomness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("randomness", ["replay", "eot:k=3", "replay-set:k=3", "fresh"])
def test_points_depend_on_the_image_alone(randomness, monkeypatch):
    """Batches of 1, 7 and 64, another order, and shards."""
    # Every kind of stage of `fast`, each short.
    only(
        monkeypatch,
        *(
            replace(stage, steps=5, starts=1)
            if isinstance(stage, Ascents)
            else replace(stage, queries=10)
            for stage in STAGES["fast"]
        ),
    )
    inner, images, labels = linear_problem(4, 14, active_box=False)
    model, threat = NoisyLinear(inner, 0.05), ThreatModel("linf", 0.03)
    drawn = read_randomness(randomness)
    whole, _ = run(model, images, labels, threat, randomness=drawn)
    for batch_size in (1, 7):
        again, _ = run(model, images, labels, threat, randomness=drawn, batch_size=batch_size)
        assert torch.equal(again.points, whole.points)
        assert torch.equal(again.stages, whole.stages)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    for rows in (*order.split(5), order):
        part, _ = run(model, images[rows], labels[rows], threat, ids=rows.numpy(), randomness=drawn)
        assert torch.equal(part.points, whole.points[rows])
        assert torch.equal(part.stages, whole.stages[rows])


def test_replay_is_deterministic_and_its_stages_are_those_of_the_judge():
    inner, images, labels = linear_problem(4, 20, active_box=False)
    model, threat = NoisyLinear(inner, 0.05), ThreatModel("linf", 0.03)
    found, victim = run(model, images, labels, threat, randomness=read_randomness("replay"))
    predictions = victim.verify(found.points)[:, 0]
    assert torch.equal(predictions != labels, found.stages != -1)
    assert 0 < (found.stages == -1).sum() < 20


class Lucky(NoisyLinear):
    """Wrong on one draw in five at the clean image; on all draws at the far end of the ball."""

    def forward(self, images: torch.Tensor, noise: Noise) -> torch.Tensor:
        mean = images.flatten(1).mean(1)
        luck = (noise.uniform("luck", (1,)).flatten() < 0.2).float()
        reward = 3.0 * (mean < 0.52).float() * luck
        return torch.stack([1 + 0 * mean, 20 * (mean - 0.5) - 0.2 + reward], 1)


@pytest.mark.parametrize("randomness", ["fresh", "eot:k=2"])
def test_under_fresh_draws_points_are_compared_on_draws_of_their_own(randomness):
    """A draw that was lucky at the clean image has the largest value of the search."""
    model = Lucky(Linear(torch.zeros(2, 16), torch.zeros(2)), 0.0)
    images, labels = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)
    drawn = read_randomness(randomness)
    found, victim = run(model, images, labels, ThreatModel("linf", 0.1), randomness=drawn)
    rows = torch.arange(4)
    wrong = victim.score(found.points, rows, labels, lambda z, y: (z.argmax(1) != y).float(), 50)
    assert (wrong == 1).all()
    assert (found.stages >= 0).all()


@pytest.mark.parametrize("randomness", ["fresh", "eot:k=2", "replay-set:k=2"])
def test_no_image_leaves_where_a_success_is_not_final(randomness, monkeypatch):
    inner, images, labels = linear_problem(3, 4, active_box=False)
    model, threat = NoisyLinear(inner, 0.05), ThreatModel("linf", 0.5)
    attack = only(monkeypatch, Squares("square", 30), *STAGES["fast"][:3])
    drawn = read_randomness(randomness)
    _, victim = run(model, images, labels, threat, attack, randomness=drawn)
    assert len(set(victim.backwards.tolist())) == 1
    ascents = passes(STAGES["fast"][:2], 3)
    assert victim.backwards[0] > drawn.k * ascents.backward


def test_momentum_of_nothing_is_the_plain_ascent():
    """And some of it moves on where the gradient has turned."""
    model, images, labels = linear_problem(10, 8, active_box=False)
    objective = Victim(classifier(model, 10), np.arange(8)).objective(labels, margin)
    threat = ThreatModel("linf", 1e-3)
    plain, none, some = (
        ascend(objective, images, images, threat, steps=3, size=2e-4, **momentum)
        for momentum in ({}, {"momentum": 0.0}, {"momentum": 0.25})
    )
    assert torch.equal(plain.last, none.last)
    # Where all signs stay: 2e-4, then 0.75 * 2e-4 + 0.25 * 2e-4, and so on: the same length.
    assert torch.allclose(plain.last, some.last, atol=1e-7)


def test_schedule_counts_are_exact():
    assert schedule.ascent_passes(10) == Passes(11, 10)
    assert Targets("t", 10, 3).passes(4) == Passes(1 + 3 * 11, 3 * 10)
    assert Targets("t", 10, 3).passes(100) == Passes(1 + 9 + 3 * 11, 9 + 3 * 10)
