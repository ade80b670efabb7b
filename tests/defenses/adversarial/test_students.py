"""Students as artifacts: trained once, loaded, resumed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from bench_defenses.adversarial import students, trainer
from torch import nn

from bench.engine.build import build
from bench.models.classifier import Classifier
from bench.threat import ThreatModel
from tests.defenses.adversarial.helpers import QUICK, evaluations, same
from tests.toys import message


@pytest.fixture
def trainings(monkeypatch):
    """(student, teacher, training, noise) of each training."""
    given = []
    real = students.train_student
    monkeypatch.setattr(
        students,
        "train_student",
        lambda *args, **options: given.append(args) or real(*args, **options),
    )
    return given


def test_a_student_is_trained_once(setup, trainings):
    one = f"pgd-at:{QUICK},n=40,rate=0.012"
    for defense in (
        one,
        one,
        f"{one},eps=0.05",
        f"{one},warmup=0",
        one,
        f"trades:{QUICK},n=40,rate=0.012",
    ):
        (evaluation,) = evaluations(setup, defense)
        build(evaluation, torch.device("cpu"))
    threats = [args[2].threat.eps for args in trainings]
    assert threats == [0.1, 0.05, 0.1, 0.1], (
        "eps=auto is the announced one; what was trained before is loaded"
    )
    again = replace(evaluations(setup, one)[0], build_seed=1)
    build(again, torch.device("cpu"))
    other = replace(again, setup=replace(setup, threat=ThreatModel("linf", 0.2)))
    build(other, torch.device("cpu"))
    assert [args[2].threat.eps for args in trainings[4:]] == [0.1, 0.2]


def test_other_images_make_another_student_and_the_evaluated_ones_none(setup, trainings, tmp_path):
    for name, grey in (("one", 10), ("two", 20)):
        np.savez(
            tmp_path / f"{name}.npz",
            x_test=np.full((20, 8, 8), grey, dtype=np.uint8),
            y_test=np.arange(20) % 2,
        )
        build(
            evaluations(setup, f"public-at:images=(npz:{tmp_path}/{name}.npz),{QUICK}")[0],
            torch.device("cpu"),
        )
    assert len(trainings) == 2
    assert "is the data set under evaluation" in message(
        lambda: evaluations(setup, f"public-at:images=mnist5k,{QUICK}")
    )


def test_the_loaded_student_is_the_trained_one(setup, trainings):
    (evaluation,) = evaluations(setup, f"mart:{QUICK},n=40,rate=0.013")
    first, second = (build(evaluation, torch.device("cpu")) for _ in range(2))
    assert len(trainings) == 1 and same(first, second) and same(first, trainings[0][0])
    assert type(first) is type(setup.classifier) and not first.training


@pytest.mark.parametrize("fresh", [False, True])
def test_a_student_starts_from_the_teacher_unless_from_scratch(setup, fresh):
    (evaluation,) = evaluations(
        setup, f"pgd-at:{QUICK},n=40,rate=1e-9,decay=0,from_scratch={str(fresh).lower()}"
    )
    student = build(evaluation, torch.device("cpu"))
    pairs = zip(student.parameters(), setup.classifier.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs) != fresh


def test_an_interrupted_build_goes_on(setup, monkeypatch):
    (evaluation,) = evaluations(
        setup, f"pgd-at:{QUICK},n=100,epochs=3,rate=0.014".replace("epochs=1,", "")
    )
    done = []
    real = trainer.StudentRun.advance

    def advance(self):
        if len(done) == 2:
            done.append("stop")
            raise KeyboardInterrupt
        done.append(self.done)
        return real(self)

    monkeypatch.setattr(trainer.StudentRun, "advance", advance)
    with pytest.raises(KeyboardInterrupt):
        build(evaluation, torch.device("cpu"))
    resumed = build(evaluation, torch.device("cpu"))
    assert done == [0, 1, "stop", 2]
    monkeypatch.setattr(students, "VERSION", -1)
    assert same(resumed, build(evaluation, torch.device("cpu")))


def test_fresh_weights(teacher):
    one, again, other = (copy.deepcopy(teacher) for _ in range(3))
    for student, seed in ((one, 3), (again, 3), (other, 4)):
        students.reset(student, seed)
    assert same(one, again) and not same(one, other)
    assert not torch.equal(one.network.convolution.weight, teacher.network.convolution.weight)
    assert torch.equal(one.network.norm.running_mean, torch.zeros(8))
    bare = nn.Module()
    bare.weight = nn.Parameter(torch.ones(1))
    assert "has no fresh weights" in message(lambda: students.reset(Classifier(bare, 2), 0))
