"""Terms of a generator's loss, and the zeroth-order estimate of their gradient."""

import math
from dataclasses import replace

import pytest
import torch
from bench_defenses.adversarial.objectives import (
    Dast,
    divergence,
    l1_centred,
)
from bench_defenses.adversarial.training_step import logits_of
from bench_defenses.generators.methods import METHODS
from bench_defenses.generators.terms import (
    TERMS,
    GeneratedBatch,
    TermInputs,
    ZerothOrder,
    measure_of,
    squared_gap,
)
from torch import nn

from bench.contract.toys import CLASSES
from bench.noise import Noise, Stream
from tests.defenses.generators.helpers import (
    SHAPE,
    SMALL,
    STUDENT,
    TEACHER,
    noise,
    other_student,
)


def test_centred_logarithms_of_probabilities_are_centred_logits():
    logs = TEACHER.softmax(1).log()
    centred = TEACHER - TEACHER.mean(1, keepdim=True)
    assert torch.allclose(logs - logs.mean(1, keepdim=True), centred, atol=1e-12)
    assert torch.equal(l1_centred(TEACHER, centred), torch.zeros(2))
    assert torch.allclose(l1_centred(TEACHER + 7, STUDENT), l1_centred(TEACHER, STUDENT)), (
        "the teacher's mean is not known"
    )
    assert not torch.allclose(l1_centred(TEACHER, STUDENT + 7), l1_centred(TEACHER, STUDENT)), (
        "the student is not centred"
    )


def test_gdfqs_measure_of_a_layer_by_hand():
    inputs = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]])
    mean, variance = torch.tensor([2.0, 2.0]), torch.tensor([1.0, 8 / 3])
    assert squared_gap(inputs, mean, variance).item() == pytest.approx(
        (1**2 + 0) / 2 + ((8 / 3 - 1) ** 2 + 0) / 2, rel=1e-5
    )


def term_inputs(teacher, student, name, batch=None, **changes):
    method = METHODS[name]
    if batch is None:
        rows = noise(3, 6)
        generator = replace(method.generator, **SMALL).build(
            SHAPE, CLASSES, 1, torch.tensor([0.5]), torch.tensor([0.1])
        )
        spec = replace(method.generator, **SMALL)
        labels = spec.classes(rows, CLASSES)
        logits = generator(spec.draw(rows), labels).detach().requires_grad_(True)
        batch = GeneratedBatch(logits, labels, rows)
    return TermInputs(
        batch, teacher, student, method.objective(), measure_of(method.terms), **changes
    )


def test_which_networks_each_term_reads(teacher):
    student, read = other_student(teacher), {}
    for name, method in METHODS.items():
        for term in method.terms:
            here = term_inputs(teacher, student, name)
            value = TERMS[term](here)
            (slope,) = torch.autograd.grad(value, here.batch.logits)
            read[term] = sorted({"teacher_logits", "student_logits"} & here.__dict__.keys())
            assert value.shape == () and slope.abs().sum() > 0, term
    assert read == {
        "agreement": ["student_logits"],
        "student_class": ["student_logits"],
        "closeness_l1": ["student_logits", "teacher_logits"],
        "teacher_class": ["teacher_logits"],
        "bn_mse": ["teacher_logits"],
        "bn_l2": ["teacher_logits"],
        "closeness_kl": ["student_logits", "teacher_logits"],
    }


def test_terms_by_hand(teacher):
    student = other_student(teacher)
    here = term_inputs(teacher, student, "dast")
    images, labels = here.batch.images.detach(), here.batch.labels
    t, s = logits_of(teacher, images), logits_of(student, images)
    expected = {
        "agreement": math.exp(-Dast().match(t, s)),
        "student_class": nn.functional.cross_entropy(s, labels),
        "teacher_class": nn.functional.cross_entropy(t, labels),
        "closeness_l1": -l1_centred(t, s).mean(),
        "closeness_kl": -divergence(t, s),
    }
    for term, value in expected.items():
        assert TERMS[term](here).item() == pytest.approx(float(value), rel=1e-5), term


def test_aits_generator_does_not_know_the_student(teacher):
    slopes = []
    for student in (teacher, other_student(teacher)):
        here = term_inputs(teacher, student, "ait")
        loss = sum(weight * TERMS[term](here) for term, weight in METHODS["ait"].terms.items())
        slopes.append(torch.autograd.grad(loss, here.batch.logits)[0])
    assert torch.equal(*slopes)


def test_the_estimate_approaches_the_exact_gradient():
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.5])
    at = torch.zeros(2, 6, dtype=torch.float64)
    value = lambda a: a @ weight.double() + 0.1 * a.square().sum(1)  # noqa: E731
    cosines = []
    for m in (1, 400):
        values, estimate = ZerothOrder(m, 1e-4).gradient(
            value, at, Noise.of(0, Stream.BUILD, [0, 1])
        )
        cosines.append(
            nn.functional.cosine_similarity(estimate, weight.double()[None]).min().item()
        )
    assert torch.equal(values, value(at)) and cosines[1] > 0.97 > cosines[0]
    # Neither 1/K nor 1/d of it.
    assert torch.allclose(estimate, weight.double().expand(2, 6), atol=0.5)


def test_the_estimate_flows_through_the_same_terms(teacher):
    student = other_student(teacher)
    exact = term_inputs(teacher, student, "dfme")
    estimated = term_inputs(
        teacher, student, "dfme", batch=exact.batch, estimator=ZerothOrder(60, 1e-2)
    )
    slopes = []
    for here in (exact, estimated):
        value = TERMS["closeness_l1"](here)
        slopes.append(
            torch.autograd.grad(value, exact.batch.logits, retain_graph=True)[0].flatten()
        )
        assert value.item() == pytest.approx(TERMS["closeness_l1"](exact).item(), rel=1e-5)
    # d = 768 and 60 directions: a cosine of about sqrt(m / (m + d)).
    assert nn.functional.cosine_similarity(*slopes, dim=0) == pytest.approx(
        math.sqrt(60 / 828), rel=0.25
    )
    assert slopes[1].norm() / slopes[0].norm() == pytest.approx(math.sqrt(1 + 768 / 60), rel=0.25)
    assert not {"teacher_logits", "student_logits"} & estimated.__dict__.keys()
