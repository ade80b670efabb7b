"""Contracts to inherit, for tests of defenses and attacks; needs pytest.

    from bench.testing import DefenseContract
    from my_defense import MyDefense

    class TestMyDefense(DefenseContract):
        defense = MyDefense

runs every check of `bench.contract.defense` as a test of its own. `bench check` runs the same ones
without pytest.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor, nn

from bench.attack import Attack
from bench.contract.attack import ATTACK_CHECKS
from bench.contract.attack_case import AttackCase
from bench.contract.check import Broken, Check, Unbuilt, name_of
from bench.contract.defense import DEFENSE_CHECKS
from bench.contract.defense_case import DefenseCase
from bench.defense import DefendedClassifier, Defense

__all__ = ["AttackContract", "DefenseContract"]


class DefenseContract:
    """Tests of a defense. Subclass it, name the class `Test...`, and set `defense`.

    Attributes:
        defense: the class (its default parameters are used), or a spec such as
            `my_defense.py@MyDefense:sigma=0.1`; the file is looked for beside the test, then in the
            working directory.
        dataset: spec of a data set to check it on; twelve built-in images of shape (3, 16, 16) by
            default.
        classifier: a module, or a classifier's spec; a small built-in one, or the data set's own,
            by default.
        images: images (n, C, H, W) in [0, 1] and labels (n,) instead of a data set; set
            `classifier` to a module as well.
    """

    defense: ClassVar[str | type[Defense[Any]]]
    dataset: ClassVar[str] = ""
    classifier: ClassVar[str | nn.Module | None] = None
    images: ClassVar[tuple[Tensor, Tensor] | None] = None

    @classmethod
    def built(cls) -> DefendedClassifier:
        """The defense as the engine builds it, for tests of your own."""
        return _defense_case(cls).defended()

    @pytest.mark.parametrize("check", DEFENSE_CHECKS, ids=name_of)
    def test_contract(self, check: Check[DefenseCase]) -> None:
        """One check of the contract."""
        _run(check, _defense_case(type(self)))


class AttackContract:
    """Tests of an attack. Subclass it, name the class `Test...`, and set `attack`.

    Attributes:
        attack: the class (its default parameters are used), or a spec such as
            `my_attack.py@MyAttack:steps=5`; the file is looked for beside the test, then in the
            working directory.
    """

    attack: ClassVar[str | type[Attack[Any]]]

    @pytest.mark.parametrize("check", ATTACK_CHECKS, ids=name_of)
    def test_contract(self, check: Check[AttackCase]) -> None:
        """One check of the contract."""
        _run(check, _attack_case(type(self)))


_DEFENSES: dict[type, DefenseCase] = {}
_ATTACKS: dict[type, AttackCase] = {}


def _defense_case(test: type[DefenseContract]) -> DefenseCase:
    if test not in _DEFENSES:
        _DEFENSES[test] = DefenseCase(
            _plugin(test, "defense"), test.dataset, test.classifier, test.images
        )
    return _DEFENSES[test]


def _attack_case(test: type[AttackContract]) -> AttackCase:
    if test not in _ATTACKS:
        _ATTACKS[test] = AttackCase(_plugin(test, "attack"))
    return _ATTACKS[test]


def _plugin(test: type, kind: str) -> Any:
    """The class or spec to test; a spec whose file stands beside the test, with that file's whole
    path.
    """
    plugin = getattr(test, kind, None)
    if plugin is None:
        pytest.fail(
            f"{test.__name__} names no {kind}: set `{kind}` to its class or spec", pytrace=False
        )
    if not isinstance(plugin, str) or "@" not in plugin:
        return plugin
    file, _, rest = plugin.partition("@")
    neighbour = Path(sys.modules[test.__module__].__file__ or "").parent / file
    return f"{neighbour}@{rest}" if neighbour.is_file() else plugin


def _run(check: Check[Any], case: Any) -> None:
    try:
        check(case)
    except Unbuilt as error:
        pytest.skip(f"it cannot be built ({error}): see the check `builds`")
    except Broken as error:
        pytest.fail(str(error), pytrace=False)
