"""Student objectives against their formulas by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from bench_defenses.adversarial.objectives import (
    OBJECTIVES,
    StudentOutputs,
    boosted_cross_entropy,
    divergence,
    read_objective,
)

from bench.losses import kl
from tests.defenses.adversarial.helpers import rng
from tests.toys import message

CLEAN = [[2.0, 0.5, -1.0], [0.1, 1.2, 0.3]]


ATTACKED = [[0.4, 0.9, -0.2], [1.5, 0.2, -0.7]]


TEACHER = [[3.0, -1.0, 0.0], [-0.5, 0.8, 0.6]]


LABELS = [0, 2]


def outputs(clean=CLEAN, attacked=ATTACKED, dtype=torch.float64):
    logits = [torch.tensor(rows, dtype=dtype) for rows in (clean, attacked, TEACHER)]
    return StudentOutputs(*logits, torch.tensor(LABELS))


def p(rows, tau=1.0):
    e = np.exp(np.array(rows) / tau)
    return e / e.sum(1, keepdims=True)


def by_hand(target, rows, tau=1.0):
    """KL of each row, in nats."""
    return (p(target, tau) * np.log(p(target, tau) / p(rows, tau))).sum(1)


def nll(rows):
    return -np.log(p(rows)[[0, 1], LABELS])


def test_kl_by_hand():
    half, biased = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, np.log(3.0)]])
    assert kl(half, biased).item() == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), abs=1e-6)
    assert kl(biased, half).item() == pytest.approx(
        0.25 * np.log(0.5) + 0.75 * np.log(1.5), abs=1e-6
    )
    assert kl(half, biased).shape == (1,) and kl(half, half).item() == 0
    far = torch.tensor([[800.0, -800.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(kl(far, -far).sum(), far)
    assert kl(far, -far).item() == pytest.approx(1600) and torch.isfinite(slope).all(), (
        "in probability space this is NaN"
    )
    # A gap of 20 nats: in float32 the true class's term drops out.
    sure = torch.tensor([[20.0, 0.0]])
    moved = torch.tensor([[19.0, 0.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(kl(sure, moved).sum(), moved)
    assert slope[0, 0] == pytest.approx(-slope[0, 1].item(), rel=1e-3) and slope[0, 0] < 0


def test_reductions_by_hand():
    values = by_hand(TEACHER, CLEAN, 4.0)
    logits = outputs()
    assert divergence(logits.teacher, logits.clean, 4.0).item() == pytest.approx(16 * values.mean())
    assert divergence(logits.teacher, logits.clean, 4.0, "element_mean").item() == pytest.approx(
        16 * values.sum() / 6
    )


def _boosted():
    wrong = [max(p(ATTACKED)[0, 1], p(ATTACKED)[0, 2]), max(p(ATTACKED)[1, 0], p(ATTACKED)[1, 1])]
    return (nll(ATTACKED) - np.log(1.0001 - np.array(wrong))).mean()


FORMULAS = {
    "pgd-at": lambda: nll(ATTACKED).mean(),
    "trades:beta=4": lambda: nll(CLEAN).mean() + 4 * by_hand(CLEAN, ATTACKED).mean(),
    "mart:beta=4": lambda: (
        _boosted() + 4 * ((1 - p(CLEAN)[[0, 1], LABELS]) * by_hand(CLEAN, ATTACKED)).mean()
    ),
    "ard:temperature=3": lambda: 9 * by_hand(TEACHER, ATTACKED, 3).mean(),
    "ard:alpha=0.7,temperature=3,reduction=element_mean": lambda: (
        0.7 * 9 * by_hand(TEACHER, ATTACKED, 3).mean() / 3 + 0.3 * nll(CLEAN).mean()
    ),
    "rslad": lambda: (
        5 / 6 * by_hand(TEACHER, ATTACKED).mean() + 1 / 6 * by_hand(TEACHER, CLEAN).mean()
    ),
    "rslad:adversarial=1,clean=0,reduction=element_mean": lambda: (
        by_hand(TEACHER, ATTACKED).mean() / 3
    ),
    "datafreeshield:clean=2,adv_teacher=3,smooth=5": lambda: (
        2 * 400 * by_hand(TEACHER, CLEAN, 20).mean() / 3
        + 3 * by_hand(TEACHER, ATTACKED).mean()
        + 5 * by_hand(CLEAN, ATTACKED).mean()
    ),
    "datafreeshield:temperature=1,reduction=batchmean,adv_teacher=0,smooth=0": lambda: by_hand(
        TEACHER, CLEAN
    ).mean(),
}


@pytest.mark.parametrize("text", FORMULAS)
def test_objectives_by_hand(text):
    objective = read_objective(text)
    assert objective.loss(outputs()).item() == pytest.approx(FORMULAS[text](), rel=1e-9)
    assert objective.loss(outputs(dtype=torch.float32)).item() == pytest.approx(
        FORMULAS[text](), rel=1e-5
    )
    # Nothing is detached: the analytic gradient to both kinds of logits is the numeric one.
    inputs = [
        torch.tensor(rows, dtype=torch.float64, requires_grad=True) for rows in (CLEAN, ATTACKED)
    ]
    assert torch.autograd.gradcheck(
        lambda clean, attacked: objective.loss(replace(outputs(), clean=clean, attacked=attacked)),
        inputs,
    )


def test_the_table_of_inner_attacks():
    inner = {
        name: (kind().inner, kind().start, kind().clean_pass) for name, kind in OBJECTIVES.items()
    }
    assert inner == {
        "ait": ("teacher", "gaussian", False),
        "ard": ("label", "uniform", False),
        "dast": ("label", "gaussian", False),
        "datafreeshield": ("student", "gaussian", True),
        "dfard": ("teacher", "gaussian", True),
        "dfme": ("label", "gaussian", False),
        "mart": ("label", "gaussian", True),
        "pgd-at": ("label", "uniform", False),
        "rslad": ("teacher", "gaussian", True),
        "trades": ("student", "gaussian", True),
    }
    assert (
        read_objective("datafreeshield:attack=ce").inner == "label"
        and read_objective("ard:alpha=0.5").clean_pass
    )
    assert not read_objective("(rslad:clean=0)").clean_pass
    assert "Did you mean 'trades'" in message(lambda: read_objective("trade"))
    assert "beta" in message(lambda: read_objective("pgd-at:beta=2"))


def test_the_same_student_at_the_same_point_costs_nothing():
    logits = torch.randn(5, 7, generator=rng())
    terms = read_objective("datafreeshield").terms(
        StudentOutputs(logits, logits, logits, torch.zeros(5))
    )
    assert [term.item() for term in terms] == [0, 0, 0]


def test_marts_second_term_sees_the_largest_wrong_class_only():
    logits, labels = torch.tensor([[9.0, 2.0, 1.0]]), torch.tensor([0])
    raised = boosted_cross_entropy(torch.tensor([[9.0, 3.0, 1.0]]), labels)
    assert boosted_cross_entropy(logits, labels) < raised
    assert torch.isfinite(boosted_cross_entropy(torch.tensor([[-500.0, 500.0]]), labels)), (
        "1.0001 keeps the logarithm finite"
    )
