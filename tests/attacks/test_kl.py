"""Attacks away from clean answers: divergences by hand, references, refusals, linear models."""

from functools import cache

import numpy as np
import pytest
import torch
from bench_attacks.kl import KL, clean_answers, divergence
from torch import nn

import bench
from bench.losses import RowLoss
from bench.plugins.create import create_attack
from bench.randomness import Query, RandomnessModel
from bench.testing import AttackContract
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.toys import (
    NoisyLinear,
    attack_robust,
    classifier,
    exact_distance,
    linear_problem,
    message,
)

N = 60


class TestKLContract(AttackContract):
    attack = "kl:steps=10"


class TestKLOfItselfContract(AttackContract):
    attack = "kl:to=self,steps=10"


@cache
def problem(classes: int = 2):
    model, images, labels = linear_problem(classes, N, active_box=True)
    distance = exact_distance(model, images, labels, "linf")
    return model, images, labels, ThreatModel("linf", float(np.median(distance))), distance


def victim(model, base=None, **settings):
    asked = model if isinstance(model, NoisyLinear) else classifier(model, 2)
    teacher = classifier(base or model, 2)
    return Victim(asked, np.arange(N), base=lambda: teacher, **settings)


def rows(n=N):
    return torch.arange(n)


def test_the_divergences_by_hand():
    """Two classes: clean answer (1/2, 1/2), answer (1/4, 3/4)."""
    clean, answer = torch.zeros(1, 1, 2), torch.tensor([[0.0, np.log(3.0)]])
    forward = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    reverse = 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)
    nobody = torch.zeros(1, dtype=torch.int64)

    def value(answers, direction):
        return float(divergence(answers, direction, answer, nobody, nobody))

    assert value([clean], False) == pytest.approx(forward, abs=1e-6)
    assert value([clean], True) == pytest.approx(reverse, abs=1e-6)
    other = answer[:, None]
    assert value([clean, other], True) == pytest.approx(reverse, abs=1e-6)
    assert value([clean, clean], False) == pytest.approx(2 * forward, abs=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_masked_class_leaves_the_divergence_finite(reverse):
    masked = torch.tensor([[0.0, 1.0, -torch.inf]])
    nobody = torch.zeros(1, dtype=torch.int64)
    value = divergence([masked[:, None]], reverse, masked.roll(1, 1), nobody, nobody)
    assert torch.isfinite(divergence([masked[:, None]], reverse, masked, nobody, nobody)).all()
    assert bool(torch.isfinite(value).all())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_many_starts_reach_the_exact_rate_of_a_linear_model(direction):
    """With two classes the divergence grows with the distance of the logits' difference from the
    clean one, so each start leads to one end of its range, and some lead to the error.
    """
    model, images, labels, threat, distance = problem()
    attack = KL(to="self", direction=direction, steps=20, restarts=10)
    teacher = classifier(model, 2)
    robust = attack_robust(teacher, images, labels, attack, threat, base=lambda: teacher)
    assert abs(robust.mean() - (distance > threat.eps).mean()) <= 0.02
    assert robust[distance > 1.001 * threat.eps].all()


def test_the_teacher_is_the_undefended_classifier():
    model, images, labels, threat, _ = problem()
    teacher = linear_problem(2, N, active_box=True, seed=1)[0]
    seen = victim(model, teacher)
    own, other = (clean_answers(seen, images, view, 1) for view in ("logits", "base"))
    assert torch.allclose(own[:, 0], model(images)) and torch.allclose(other[:, 0], teacher(images))
    assert not torch.allclose(own, other)


def test_the_teachers_answer_leads_elsewhere_than_the_defenses_own():
    model, images, labels, threat, _ = problem()
    teacher = linear_problem(2, N, active_box=True, seed=1)[0]
    with frozen(model):
        by_teacher, by_self = (
            KL(to=to, direction="forward", steps=3)(
                victim(model, teacher), images, labels, threat
            ).points
            for to in ("teacher", "self")
        )
    assert not torch.allclose(by_teacher, by_self)


def test_replayed_draws_are_compared_each_with_its_own():
    """At the image itself the divergence from the defense's own answer is 0 under every draw."""
    model, images, _, _, _ = problem()
    noisy = NoisyLinear(model, 0.3)
    seen = victim(noisy, model, randomness=RandomnessModel("replay-set", 3))
    clean = clean_answers(seen, images, "logits", 1)
    assert clean.shape == (N, 3, 2)
    assert not torch.allclose(clean[:, 0], clean[:, 1])
    labels = torch.zeros(N, dtype=torch.int64)
    loss = RowLoss(lambda output, labels, rows: divergence([clean], False, output, labels, rows))
    read = seen.objective(labels, loss, rows=rows())(images, rows(), 0, True)
    assert float(read.value.abs().max()) < 1e-6
    some = torch.tensor([7, 3])
    again = seen.objective(labels, loss, rows=some)(images[some], torch.arange(2), 0, True)
    assert float(again.value.abs().max()) < 1e-6


def test_a_mean_of_replayed_logits_is_compared_with_the_mean():
    model, images, _, _, _ = problem()
    seen = victim(
        NoisyLinear(model, 0.3), model, randomness=RandomnessModel("replay-set", 3, "logits")
    )
    clean = clean_answers(seen, images, "logits", 1)
    each = seen.logits(images, rows(), Query())
    assert torch.allclose(clean, each.mean(1, keepdim=True))


def test_fresh_draws_give_one_mean_answer():
    model, images, _, _, _ = problem()
    seen = victim(NoisyLinear(model, 0.3), model)
    clean = clean_answers(seen, images, "logits", 1)
    queries = [seen.logits(images, rows(), Query(1, number)) for number in range(10)]
    mean = torch.cat(queries, 1).softmax(2).mean(1)
    assert clean.shape == (N, 1, 2)
    assert torch.allclose(clean.softmax(2)[:, 0], mean, atol=1e-6)
    assert not torch.allclose(seen.logits(images, rows(), Query(0, 0)), queries[0])


def test_each_is_no_weaker_than_its_parts():
    model, images, labels, threat, _ = problem()
    teacher = classifier(linear_problem(2, N, active_box=True, seed=1)[0], 2)
    robust = {
        to: attack_robust(
            classifier(model, 2), images, labels, KL(to=to, steps=5), threat, base=lambda: teacher
        )
        for to in ("self", "each")
    }
    assert not (robust["each"] & ~robust["self"]).any()


def test_survivors_keep_the_point_of_largest_margin():
    """Divergences of different searches do not compare; the margin does."""
    model, images, labels, _, _ = problem()
    threat = ThreatModel("linf", 1e-3)
    with frozen(model):
        both, forward = (
            KL(to="self", direction=direction, steps=5)(
                victim(model), images, labels, threat
            ).points
            for direction in ("each", "forward")
        )
    gaps = [(model(points) * torch.tensor([-1.0, 1.0])).sum(1) for points in (both, forward)]
    margins = [torch.where(labels == 0, gap, -gap) for gap in gaps]
    assert (margins[0] >= margins[1] - 1e-6).all()
    assert (margins[0] > margins[1] + 1e-6).any()


def test_without_a_base_only_the_defense_itself_will_do():
    """Refused before anything runs."""
    images = np.random.default_rng(0).uniform(size=(8, 1, 4, 4)).astype(np.float32)
    labels = np.arange(8) % 2

    class Two(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)

    def run(attack):
        two = bench.ModuleDefense(Two(), name="two")
        return bench.evaluate(dataset=(images, labels), defenses=two, attacks=attack, eps=0.1)

    text = message(lambda: run("kl"))
    assert "undefended classifier" in text and "to=self" in text
    assert len(run("kl:to=self,steps=2").records) == 1


def test_a_start_at_the_image_is_refused():
    text = message(lambda: create_attack("kl:random_start=false"))
    assert "has no gradient" in text
