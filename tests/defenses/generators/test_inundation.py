"""Gradient inundation."""

import copy

import pytest
import torch
from bench_defenses.generators.inundation import MOST, Inundation, bracketed, lengthen, weights

from tests.defenses.generators.helpers import (
    plan_of,
    same,
    train,
)


def test_the_bracket_reaches_its_share():
    for knee in (0.3, 1.0, 1.5, 7.0, 60.0):
        changed = lambda length, knee=knee: min(1.0, 0.01 * length / knee)  # noqa: E731
        length = bracketed(changed, 0.01)
        assert length == 1 if knee <= 1 else length == pytest.approx(knee, rel=0.04)
        assert changed(length) >= 0.01 * 0.99
    assert bracketed(lambda length: 0.0, 0.01) == MOST


def test_steps_are_lengthened_until_the_grid_notices(teacher):
    flood, weight = Inundation(4), torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    step = 1e-4 * torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    assert flood.codes(weight).amin() == 0 and flood.codes(weight).amax() == 15
    assert torch.equal(flood.codes(2 * weight + 1), flood.codes(weight)), (
        "asymmetric, the range taken anew"
    )
    assert flood.changed(weight, step, 0.0) == 0 and flood.changed(
        weight, step, 1.0
    ) < flood.share <= flood.changed(weight, step, 100.0)
    length = flood.length(weight, step)
    assert 1 < length <= MOST and flood.changed(weight, step, length) >= flood.share * 0.99
    student = copy.deepcopy(teacher)
    before = [one.clone() for one in weights(student)]
    with torch.no_grad():
        for one in weights(student):
            one.add_(1e-5)
    bias = student.network.head.bias.clone()
    lengthen(before, student, flood)
    for old, new in zip(before, weights(student), strict=True):
        assert torch.allclose(new - old, torch.full_like(old, 1e-3), rtol=1e-2), (
            "a shift of all weights moves no code: the cap"
        )
    assert torch.equal(student.network.head.bias, bias)


def test_inundation_changes_only_how_far_the_student_steps(teacher):
    plain, flooded = (
        train(teacher, "ait"),
        train(teacher, "ait", plan_of("ait", inundation=Inundation(4))),
    )
    assert not same(plain.student, flooded.student) and same(plain.generator, flooded.generator)
    assert plain.passes == flooded.passes
