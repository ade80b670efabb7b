"""The lists of checks."""

from bench.contract.attack import ATTACK_CHECKS
from bench.contract.check import examine, name_of
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


def two_lines(case) -> None:
    """It keeps a promise that is too long
    for one line.

    What only readers of the code need to know.
    """


def test_a_promise_is_shown_whole_and_in_one_line():
    (verdict,) = examine([two_lines], None)
    assert (verdict.name, verdict.outcome) == ("two lines", "ok")
    assert verdict.message == "It keeps a promise that is too long for one line."
    for check in (*DEFENSE_CHECKS, *ATTACK_CHECKS):
        assert check.__doc__.strip().endswith("."), name_of(check)
