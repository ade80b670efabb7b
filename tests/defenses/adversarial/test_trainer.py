"""The trainer: repeatable, resumable, blind to what it may not see."""

import copy
from dataclasses import replace

import pytest
import torch
from bench_defenses.adversarial import trainer
from bench_defenses.adversarial.objectives import (
    read_objective,
)
from bench_defenses.adversarial.tagged_images import Tag, TaggedImages, split
from bench_defenses.adversarial.trainer import (
    HeldOutAgreement,
    StudentTraining,
    train_student,
)
from bench_defenses.adversarial.training_step import logits_of
from torch import nn

from bench.contract.toys import CLASSES, SmallNet, gratings
from bench.engine.fingerprint import fingerprint
from bench.models.classifier import Classifier
from bench.noise import isolated
from bench.threat import ThreatModel
from tests.defenses.adversarial.helpers import ONCE, THREAT, noise, same
from tests.toys import message


def test_training_leaves_teacher_images_and_generators_alone(learn, teacher, source):
    before, pixels = fingerprint(teacher), source.images.clone()
    done = learn(objective="datafreeshield")
    assert fingerprint(teacher) == before and torch.equal(source.images, pixels)
    assert not same(done.student, teacher)
    assert not done.student.training and not any(
        one.requires_grad for one in done.student.parameters()
    )


def test_the_same_noise_gives_the_same_student(learn):
    one, again, other = learn(), learn(), learn(seed=1)
    assert same(one.student, again.student) and not same(one.student, other.student)


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_an_interrupted_run_ends_in_the_same_bits(learn, source, tmp_path, monkeypatch, checkpoint):
    agreements = iter([0.5, 0.9, 0.1, 0.2] * 2)
    monkeypatch.setattr(HeldOutAgreement, "__call__", lambda self, student: next(agreements))
    schedule = replace(
        ONCE,
        epochs=4,
        batch=10,
        group=3,
        schedule="cosine",
        warmup=0.5,
        clip=0.5,
        checkpoint=checkpoint,
    )
    images, held_out = split(source, 0.2, noise())
    reported = []

    def stop(epoch):
        reported.append(epoch.done)
        if epoch.done < 4:
            raise KeyboardInterrupt

    options = {"images": images, "held_out": held_out}
    whole = learn(schedule, **options)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            learn(schedule, folder=tmp_path, report=stop, **options)
    resumed = learn(schedule, folder=tmp_path, report=stop, **options)
    assert reported == [1, 2, 3, 4] and trainer.epochs_done(tmp_path) == 4
    assert (
        same(whole.student, resumed.student)
        and whole.history == resumed.history
        and whole.kept == resumed.kept
    )
    assert resumed.kept.done == (2 if checkpoint == "best" else 4)


def test_the_best_epoch_is_chosen_by_held_out_agreement(learn, source, monkeypatch):
    agreements = iter([0.5, 0.9, 0.7, 0.9, 0.1])
    schedule = replace(ONCE, epochs=5, checkpoint="best")
    four = learn(replace(ONCE, epochs=4))
    monkeypatch.setattr(HeldOutAgreement, "__call__", lambda self, student: next(agreements))
    best = learn(schedule, held_out=source)
    assert best.kept.done == 4 and same(best.student, four.student), "the later one of equals"
    assert [epoch.agreement for epoch in best.history] == [0.5, 0.9, 0.7, 0.9, 0.1]


def test_agreement_is_the_share_that_keeps_the_teachers_answer_under_attack(teacher, source):
    far, near = (
        HeldOutAgreement(teacher, source, 10, ThreatModel("linf", eps), 0) for eps in (0.4, 1e-4)
    )
    assert near(teacher) == 1 and far(teacher) < 0.5


def test_without_labels_the_teacher_answers(learn, teacher, source):
    labelled = replace(source, labels=logits_of(teacher, source.images).argmax(1))
    wrong = replace(source, labels=(labelled.labels + 1) % CLASSES)
    unlabelled = learn(objective="mart", images=replace(source, labels=None)).student
    assert same(unlabelled, learn(objective="mart", images=labelled).student)
    assert not same(unlabelled, learn(objective="mart", images=wrong).student)


class Dropping(SmallNet):
    """Dropout while it is trained."""

    def features(self, images):
        return nn.functional.dropout(super().features(images), 0.5, self.training)


def test_dropout_repeats():
    model = Classifier(Dropping(gratings(96, first=1000)), CLASSES).eval()
    images = gratings(24)
    source = TaggedImages(images.pixels(), images.labels, Tag.SYNTHETIC)
    students = []
    for seed in (0, 1):
        with isolated(seed):
            student = copy.deepcopy(model)
            training = StudentTraining(source, read_objective("trades"), ONCE, THREAT)
            students.append(train_student(student, model, training, noise(), needs=[]).student)
    assert same(*students), "whatever state the global generators are in"


def test_refusals(learn, teacher, source, tmp_path):
    random = copy.deepcopy(teacher)
    random.stochastic = True
    assert "draws random numbers" in message(lambda: learn(student=random))
    assert "nothing is held out" in message(lambda: learn(replace(ONCE, checkpoint="best")))
    assert "lower the learning rate" in message(lambda: learn(replace(ONCE, epochs=4, rate=1e30)))
    (tmp_path / trainer.STATE).write_bytes(b"nonsense")
    assert "no checkpoint of this training run" in message(lambda: learn(folder=tmp_path))
    assert "no checkpoint of this training run" in message(lambda: trainer.epochs_done(tmp_path))
    assert "too few to hold 1 out" in message(lambda: split(source.first(1), 0.1, noise()))
