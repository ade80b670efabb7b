"""The contract of an attack: ours pass it, and each check alone catches what it is there for."""

import numpy as np
import pytest
import torch
from bench_attacks.pgd import PGD, PGDParams
from pydantic import ConfigDict

from bench.attack import Attack
from bench.contract.attack import ATTACK_CHECKS
from bench.contract.attack_case import AttackCase
from bench.contract.toys import CLASSES, Linear
from bench.defense import Card
from bench.losses import margin
from bench.randomness import Query
from bench.testing import AttackContract
from tests.contract.helpers import failures


class TestPGD(AttackContract):
    attack = "pgd+replay:steps=5"


class TestPGDClass(AttackContract):
    attack = PGD


class TestSquare(AttackContract):
    attack = "square:queries=50"


class TestApgd(AttackContract):
    attack = "apgd-ce:steps=10"


class TestRandomNoise(AttackContract):
    attack = "noise:tries=3"


class TestNull(AttackContract):
    attack = "null"


class Honest(Attack[PGDParams]):
    """Five steps of PGD, to break."""

    Params = PGDParams
    card = Card(paper="a paper")

    def run(self, victim, images, labels, threat):
        return PGD(PGDParams(steps=5)).run(victim, images, labels, threat)


def attack(run, **attributes):
    return type("Broken", (Honest,), {"__doc__": "A toy.", "run": run, **attributes})


def leaves_the_ball():
    def run(self, victim, images, labels, threat):
        return Honest.run(self, victim, images, labels, threat) + 0.001

    return attack(run)


def works_in_place():
    def run(self, victim, images, labels, threat):
        points = Honest.run(self, victim, images, labels, threat)
        labels.zero_()
        return points

    return attack(run)


def needs_a_large_ball():
    def run(self, victim, images, labels, threat):
        return Honest.run(self, victim, images, labels, threat) / min(1.0, threat.eps // 1e-6)

    return attack(run)


def keeps_a_generator():
    rng = np.random.default_rng(0)

    def run(self, victim, images, labels, threat):
        points = Honest.run(self, victim, images, labels, threat)
        return threat.project(points + 1e-5 * float(rng.normal()), images)

    return attack(run)


def seeds_globally():
    def run(self, victim, images, labels, threat):
        return threat.project(
            Honest.run(self, victim, images, labels, threat) + 1e-3 * torch.rand(1), images
        )

    return attack(run)


def one_direction_for_all():
    def run(self, victim, images, labels, threat):
        rows = torch.arange(len(images))
        slope = victim.objective(labels, margin)(images, rows, 0, True).gradient
        return threat.ascend(images, slope + 2 * slope.mean(0, keepdim=True), threat.eps, images)

    return attack(run)


def ruins_the_model():
    def run(self, victim, images, labels, threat):
        for module in vars(victim).values():
            if isinstance(getattr(module, "network", None), Linear):
                module.network.weight.data.neg_()
        return Honest.run(self, victim, images, labels, threat)

    return attack(run)


def does_nothing():
    return attack(lambda self, victim, images, labels, threat: images)


def expects_one_draw():
    def run(self, victim, images, labels, threat):
        victim.logits(images, torch.arange(len(images)), Query()).reshape(len(images), -1)[
            :, :CLASSES
        ].argmax(1)
        assert victim.logits(images, torch.arange(len(images)), Query()).shape[1] == 1
        return Honest.run(self, victim, images, labels, threat)

    return attack(run)


def expects_a_gradient():
    def run(self, victim, images, labels, threat):
        reading = victim.objective(labels, margin)(images, torch.arange(len(images)), 0, True)
        assert reading.success.all() or reading.gradient.abs().sum() > 0
        return Honest.run(self, victim, images, labels, threat)

    return attack(run)


def nameless():
    return attack(Honest.run, __doc__=None)


def without_a_card():
    return attack(Honest.run, card=Card())


def with_unread_parameters():
    class Sizes(PGDParams):
        sizes: tuple[int, int] = (3, 5)

    return attack(Honest.run, Params=Sizes)


def with_loose_parameters():
    class Loose(PGDParams):
        model_config = ConfigDict(extra="ignore")

    return attack(Honest.run, Params=Loose)


BROKEN_ATTACKS = {
    leaves_the_ball: "points in ball and box",
    works_in_place: "inputs left alone",
    needs_a_large_ball: "nothing in a tiny ball",
    keeps_a_generator: "same points again",
    seeds_globally: "generators untouched",
    one_direction_for_all: "rows stand alone",
    ruins_the_model: "sound on a linear model",
    does_nothing: "finds something",
    expects_one_draw: "works on random defenses",
    expects_a_gradient: "works without gradients",
    nameless: "describes itself",
    without_a_card: "describes itself",
    with_unread_parameters: "parameters survive their spec",
    with_loose_parameters: "bad parameters are refused",
}


@pytest.mark.parametrize("broken", BROKEN_ATTACKS, ids=lambda broken: broken.__name__)
def test_each_broken_attack_fails_its_check_and_no_other(broken):
    assert set(failures(ATTACK_CHECKS, AttackCase(broken()))) == {BROKEN_ATTACKS[broken]}


def test_the_built_in_images_are_learned_and_half_of_them_breakable():
    case = AttackCase("pgd")
    assert all(
        0.1 < (a.predictions[:, 0] == case.images.labels).float().mean() < 0.9
        for a in case.points_by_norm.values()
    )
    null = AttackCase("null").points_by_norm["linf"]
    assert (null.predictions[:, 0] == case.images.labels).all()
