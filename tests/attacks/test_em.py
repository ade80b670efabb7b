"""`em`: the direction that draws agree on, its price, and what it refuses."""

import numpy as np
import pytest
import torch
from bench_attacks.em import EM, common_direction, steepest
from bench_attacks.pgd import PGD

from bench.defense import DefendedClassifier, Setting
from bench.engine.plan import plan
from bench.randomness import RandomnessModel, read_randomness
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.helpers import toy_request
from tests.toys import NoisyLinear, linear_problem, message

LINF = ThreatModel("linf", 0.1)


def run(attack, model, images, labels, law="fresh", ids=None):
    with frozen(model):
        victim = Victim(
            model,
            np.arange(len(images)) if ids is None else ids,
            randomness=read_randomness(law),
        )
        return attack(victim, images, labels, LINF), victim


def test_the_direction_is_that_of_the_formula():
    """Two pixels, three draws, followed by hand in NumPy."""
    values, gradients = np.array([0.5, 0.2, -1.0]), np.array([[1.0, -0.5], [0.4, 2.0], [-5.0, 1.0]])
    r = gradients[0]
    for _ in range(5):
        weights = 1 / (1 + np.exp(-5 * (values + gradients @ np.sign(r))))
        r = (weights[:, None] * gradients).sum(0) / weights.sum()
    found = common_direction(
        torch.tensor(values)[None], torch.tensor(gradients)[None, :, None, None], LINF
    )
    assert found.shape == (1, 1, 1, 2)
    np.testing.assert_allclose(found.flatten(), r, rtol=1e-6)
    assert (
        np.sign(r)[1] != np.sign(gradients.mean(0))[1]
        or np.sign(r)[0] != np.sign(gradients.mean(0))[0]
    )


def test_no_weight_is_no_division_by_zero():
    found = common_direction(torch.full((1, 2), -1e4), torch.ones(1, 2, 1, 1, 3), LINF)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_steepest_direction_has_length_one_and_gains_the_dual_norm(norm):
    r = torch.tensor([[3.0, -4.0, 0.5]])
    d = steepest(r, ThreatModel(norm, 0.5))
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    assert d.norm(p=order).item() == pytest.approx(1)
    assert (r * d).sum().item() == pytest.approx({"linf": 7.5, "l2": 25.25**0.5, "l1": 4}[norm])


class Dilemma(DefendedClassifier):
    """Half of the draws can be broken in one direction; the others never, and their gradient is ten
    times as steep the other way.
    """

    num_classes, stochastic = 2, True

    def forward(self, images, noise):
        mean = images.flatten(1).mean(1) - 0.5
        weak = noise.uniform("coin") < 0.5
        margin = torch.where(weak, 50 * mean - 1, -500 * mean - 100)
        return torch.stack([torch.zeros_like(margin), margin], 1)


def test_it_breaks_what_the_mean_gradient_cannot():
    images, labels = torch.full((6, 1, 3, 3), 0.5), torch.zeros(6, dtype=torch.int64)
    law = "eot:k=10"
    em, _ = run(EM(steps=10), Dilemma(), images, labels, law)
    mean, _ = run(PGD(steps=10, loss="margin"), Dilemma(), images, labels, law)
    shift = [(found.points - images).flatten(1).mean(1) for found in (em, mean)]
    # 50 * 0.02 - 1 = 0: above it half of the draws are wrong.
    assert (shift[0] > 0.02).all() and (shift[1] < 0).all()


def test_under_one_fixed_noise_it_is_pgd_on_the_margin():
    inner, images, labels = linear_problem(3, 12, active_box=False)
    model = NoisyLinear(inner, 0.02)
    em, seen = run(EM(steps=6), model, images, labels, "replay")
    pgd, other = run(PGD(steps=6, loss="margin"), model, images, labels, "replay")
    assert torch.equal(em.points, pgd.points) and torch.equal(em.predictions, pgd.predictions)
    assert torch.equal(seen.forwards, other.forwards) and not torch.equal(em.points, images)
    assert torch.equal(seen.backwards, other.backwards)


@pytest.mark.parametrize(("law", "k"), [("fresh", 3), ("eot:k=2", 2), ("replay-set:k=4", 4)])
def test_it_costs_what_is_told(law, k):
    inner, images, labels = linear_problem(3, 4, active_box=False)
    attack = EM(steps=4, draws=3, restarts=2)
    _, victim = run(attack, NoisyLinear(inner, 0.02), images, labels, law)
    around = 4 if "replay" in law else 2 * 2 * 10
    assert (victim.forwards == 2 * 5 * k + around).all() and (victim.backwards == 2 * 4 * k).all()
    if law == "fresh":
        assert (attack.passes().forward, attack.passes().backward) == (30, 24)


@pytest.mark.parametrize("law", ["fresh", "eot:k=3", "replay"])
def test_points_belong_to_the_image(law):
    inner, images, labels = linear_problem(3, 5, active_box=False)
    model, attack = NoisyLinear(inner, 0.05), EM(steps=3, draws=3)
    together, _ = run(attack, model, images, labels, law)
    for i in range(5):
        alone, _ = run(attack, model, images[i : i + 1], labels[i : i + 1], law, ids=np.array([i]))
        assert torch.allclose(alone.points[0], together.points[i], atol=1e-6)


def test_a_defense_without_randomness_is_refused_in_one_line():
    line = message(lambda: plan(toy_request(defenses=("undefended",), attacks=("em",))))
    assert "draws none" in line and "pgd:loss=margin" in line
    setting = Setting(True, RandomnessModel("eot", 4, "logits"), LINF, 3, (1, 4, 4))
    assert "drop average=logits" in message(lambda: EM().check(setting))
    # The base of a random defense is not: its row has one draw.
    assert [one.defense.name for one in plan(toy_request(attacks=("em",)))] == [
        "undefended",
        "toy-jitter",
    ]
