"""The lists of checks."""

from bench.contract.attack import ATTACK_CHECKS
from bench.contract.check import name_of
from bench.contract.defense import DEFENSE_CHECKS
from tests.contract.test_attack import BROKEN_ATTACKS
from tests.contract.test_defense import BROKEN


def test_every_check_has_caught_something():
    seen_by_several = {"same noise same logits"}
    assert {name_of(check) for check in DEFENSE_CHECKS} == {*BROKEN.values(), *seen_by_several}
    assert {name_of(check) for check in ATTACK_CHECKS} == {
        *BROKEN_ATTACKS.values(),
        "engine runs it",
    }
