"""What `bench check` does: find out what a spec names, and run its contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.commands.info import kind_of
from bench.contract.attack import ATTACK_CHECKS
from bench.contract.attack_case import AttackCase
from bench.contract.check import Verdict, examine
from bench.contract.defense import DEFENSE_CHECKS
from bench.contract.defense_case import DefenseCase
from bench.errors import BadInput
from bench.plugins.create import BASE
from bench.spec import parse

WITHOUT_A_CARD = "ensemble:fast"
"""Names a plugin, which need not be installed: the advice is text."""


@dataclass(frozen=True)
class Examination:
    """All verdicts on a plugin, and the command to go on with."""

    verdicts: list[Verdict]
    advice: str

    @property
    def broken(self) -> bool:
        return any(verdict.outcome == "FAIL" for verdict in self.verdicts)

    def __str__(self) -> str:
        lines = [
            f"{verdict.outcome:<6}{verdict.name}: {verdict.message}" for verdict in self.verdicts
        ]
        failed = sum(verdict.outcome == "FAIL" for verdict in self.verdicts)
        lines.append(f"{len(lines)} checks, {failed} failed")
        return "\n".join(
            [*lines, *([f"next: {self.advice}"] if self.advice and not failed else [])]
        )


def check_plugin(
    text: str, registries: dict[str, Any], dataset: str = "", classifier: str | None = None
) -> Examination:
    """Check a defense or an attack by its spec. Raises `BadInput` where the spec names neither."""
    kind = kind_of(parse(text).name, registries)
    if kind == "defenses":
        defense = DefenseCase(text, dataset, classifier)
        return Examination(list(examine(DEFENSE_CHECKS, defense)), _attacks_on(defense))
    if kind != "attacks":
        raise BadInput(
            f"{text!r} is one of the {kind}: only defenses and attacks have a contract to check"
        )
    if dataset or classifier:
        raise BadInput(
            "an attack is checked on small models of known robustness: drop --dataset and "
            "--classifier"
        )
    return Examination(
        list(examine(ATTACK_CHECKS, AttackCase(text))),
        f"bench run --defense {BASE} --attack {text}",
    )


def _attacks_on(case: DefenseCase) -> str:
    """The command that attacks a defense as its card says, else by the suite that costs little."""
    attacks = case.plugin.card.attacks or (WITHOUT_A_CARD,)
    given = " ".join(f"--attack {attack}" for attack in attacks)
    return f"bench run --defense {case.defense.spec} {given}"
