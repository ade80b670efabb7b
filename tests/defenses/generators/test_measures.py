"""How far a student is from its teacher, by hand."""

import numpy as np
import pytest
import torch
from bench_defenses.adversarial.objectives import (
    Ait,
    Dast,
    Dfard,
    Dfme,
    Rslad,
    StudentOutputs,
    divergence,
)

from tests.defenses.generators.helpers import OTHER, STUDENT, TEACHER


def p(logits, tau=1.0):
    e = np.exp(logits.numpy() / tau)
    return e / e.sum(1, keepdims=True)


def kl_by_hand(tau):
    return (p(TEACHER, tau) * np.log(p(TEACHER, tau) / p(STUDENT, tau))).sum(1)


MATCHES = {
    "dast": (
        Dast(beta=0.3),
        lambda: (
            -np.log(p(STUDENT)[[0, 1], [0, 1]]).mean()
            + 0.3 * ((p(STUDENT) - p(TEACHER)) ** 2).mean()
        ),
    ),
    "dfme": (
        Dfme(),
        lambda: (STUDENT - (TEACHER - TEACHER.mean(1, keepdim=True))).abs().mean().item(),
    ),
    "ait": (Ait(temperature=3), lambda: 9 * kl_by_hand(3).sum() / 6),
    "dfard": (Dfard(temperature=3), lambda: 9 * kl_by_hand(3).mean()),
}


@pytest.mark.parametrize("name", MATCHES)
def test_measures_by_hand(name):
    objective, by_hand = MATCHES[name]
    assert objective.match(TEACHER, STUDENT).item() == pytest.approx(by_hand(), rel=1e-9)
    seen = StudentOutputs(STUDENT, OTHER, TEACHER, torch.zeros(2))
    both = objective.model_copy(update={"adversarial": 2.0, "clean": 5.0}).loss(seen)
    assert both.item() == pytest.approx(2 * objective.match(TEACHER, OTHER).item() + 5 * by_hand())
    clean = objective.model_copy(update={"adversarial": 0.0, "clean": 1.0})
    assert (
        clean.clean_pass
        and not clean.attacked_pass
        and clean.loss(seen).item() == pytest.approx(by_hand())
    )
    with pytest.raises(ValueError, match="nothing is learnt"):
        type(objective)(adversarial=0, clean=0)


def test_dfard_at_temperature_one_is_rslad():
    seen = StudentOutputs(STUDENT, OTHER, TEACHER, torch.zeros(2))
    assert Dfard().loss(seen) == Rslad().loss(seen)
    assert Dfard(temperature=3).loss(seen).item() == pytest.approx(
        (5 / 6 * divergence(TEACHER, OTHER, 3) + 1 / 6 * divergence(TEACHER, STUDENT, 3)).item()
    )
