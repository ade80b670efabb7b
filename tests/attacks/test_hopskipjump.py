"""`hopskipjump`: its contract, defenses that block gradients or draw, what it records."""

import numpy as np
import pytest
from bench_attacks.hopskipjump import LEAST, HopSkipJump

from bench.attack import Passes
from bench.defense import Setting
from bench.randomness import RandomnessModel
from bench.searches.answers import most_queries
from bench.testing import AttackContract
from bench.threat import ThreatModel
from tests.helpers import run_toys
from tests.toys import message


class TestHopSkipJump(AttackContract):
    attack = "hopskipjump:queries=500"


class TestHopSkipJumpForDistances(AttackContract):
    attack = "hopskipjump:queries=300,distances=true"


def run(tmp_path, attack, defense="undefended", **changes):
    asked = {"defenses": (defense,), "attacks": (attack,), "dataset": "toy:n=30", "norm": "l2"}
    return run_toys(tmp_path, **{**asked, "eps": 0.1, **changes})[-1]


def left(record, which="adversarial"):
    return record.outcomes.correct(which).mean(1) > 0.5


def test_a_blocked_gradient_does_not_stop_it(tmp_path):
    blind, open_ = (
        run(tmp_path, f"hopskipjump:{1500}", defense, eps=0.15)
        for defense in ("gradient-killer", "undefended")
    )
    pgd = run(tmp_path, "pgd", "gradient-killer", eps=0.15)
    assert left(blind).mean() <= left(open_).mean() + 0.1 < left(pgd).mean() - 0.3
    assert blind.cost.attack_backwards == 0


def test_it_leaves_no_less_than_a_gradient_attack_where_gradients_are_good(tmp_path):
    ours, pgd = (
        run(tmp_path, attack, eps=0.03) for attack in ("hopskipjump:2000", "pgd:steps=100")
    )
    assert not (left(pgd) & ~left(ours)).any()
    assert 0 < left(pgd).sum() <= left(ours).sum() < 30


@pytest.mark.parametrize("attack", ["hopskipjump+replay:1000", "hopskipjump:1000"])
def test_on_a_defense_that_draws(tmp_path, attack):
    record = run(tmp_path, attack, "toy-jitter", eps=0.25)
    which = "replayed" if "replay" in attack else "adversarial"
    assert left(record, which).mean() < 0.5 < left(record, "clean").mean()


def test_distances_are_recorded_where_they_are_asked_for(tmp_path):
    plain = run(tmp_path, "hopskipjump:600")
    record = run(tmp_path, "hopskipjump:queries=600,distances=true")
    assert plain.distances is None
    far = record.distances.array()
    assert ((far > 0.1) == left(record)).all() and np.isfinite(far).all()
    assert plain.cost.attack_forwards < record.cost.attack_forwards


def test_it_tells_its_queries():
    attack = HopSkipJump(queries=1000)
    assert attack.passes() == Passes(most_queries(1000)) and most_queries(1000) <= 1000
    assert most_queries(LEAST) > 150


def test_l1_is_refused():
    setting = Setting(False, RandomnessModel(), ThreatModel("l1", 1.0), 10, (1, 4, 4))
    assert "linf and l2" in message(lambda: HopSkipJump().check(setting))
