"""What methods adapt on the way."""

import pytest
import torch
from bench_defenses.adversarial.objectives import (
    Dfard,
    Dfme,
    StudentOutputs,
)
from bench_defenses.generators.adaptation import BalancedTerms, LabelWeight, NoAdaptation

from tests.defenses.generators.helpers import OTHER, STUDENT, TEACHER


def test_dasts_label_weight_decreases_and_stays():
    adaptation = LabelWeight({"agreement": 1.0, "student_class": 0.2})
    weights = []
    for value in (0.5, 0.08, 0.3, 0.02, 0.09):
        adaptation.generator_updated({"agreement": 1.0, "student_class": value})
        weights.append(adaptation.weights()["student_class"])
    assert weights == [0.2, 0.08, 0.08, 0.02, 0.09] and adaptation.weights()["agreement"] == 1


def test_balanced_weights_pull_alike():
    adaptation = BalancedTerms({"a": 1.0, "b": 1.0, "c": 1.0})
    assert adaptation.weights() == {"a": 1.0, "b": 1.0, "c": 1.0}
    adaptation.generator_updated({"a": 2.0, "b": -4.0, "c": 1.0})
    balanced = adaptation.weights()
    assert balanced == pytest.approx({"a": 6 / 7, "b": 3 / 7, "c": 12 / 7}) and sum(
        balanced.values()
    ) == pytest.approx(3)
    for _ in range(200):
        adaptation.generator_updated({"a": 2.0, "b": 1000.0, "c": 0.0})
    assert adaptation.weights()["b"] == 0.1 and adaptation.weights()["c"] <= 10


def test_the_temperature_ascends_the_students_loss():
    adaptation = BalancedTerms({"a": 1.0})
    assert adaptation.temperature == 11
    outputs = StudentOutputs(STUDENT, OTHER, TEACHER, torch.zeros(2))
    objective = adaptation.objective(Dfard())
    assert objective.temperature == 11 and Dfard().temperature == 1
    adaptation.student_updated(objective, outputs, 0.0)
    assert adaptation.temperature == 11, "the rate rises from 0"
    before = objective.loss(outputs)
    adaptation.student_updated(objective, outputs, 1.0)
    assert adaptation.temperature != 11 and adaptation.objective(Dfard()).loss(outputs) > before


def test_no_adaptation_adapts_nothing():
    adaptation = NoAdaptation({"a": 2.0})
    adaptation.generator_updated({"a": 1.0})
    assert (
        adaptation.weights() == {"a": 2.0}
        and adaptation.state == {}
        and adaptation.objective(Dfme()) == Dfme()
    )
