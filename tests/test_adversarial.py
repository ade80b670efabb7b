"""Adversarially trained students: formulas by hand, GradRefine's table, the trainer's costs and
promises, the defenses.
"""

import copy
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from bench_defenses.adversarial import public_at, students, trainer, training_data
from bench_defenses.adversarial import training_step as training_step_module
from bench_defenses.adversarial.gradrefine import GradRefine
from bench_defenses.adversarial.objectives import (
    OBJECTIVES,
    StudentOutputs,
    boosted_cross_entropy,
    divergence,
    read_objective,
)
from bench_defenses.adversarial.params import TrainingParams
from bench_defenses.adversarial.public_at import PublicAtParams
from bench_defenses.adversarial.tagged_images import Tag, TaggedImages, accepted, check_tag, split
from bench_defenses.adversarial.trainer import (
    HeldOutAgreement,
    Schedule,
    StudentTraining,
    train_student,
)
from bench_defenses.adversarial.training_step import clipped, logits_of, search, starting_points
from torch import nn

from bench.contract.toys import CLASSES, SmallNet, gratings
from bench.defense import AccessDenied, Need
from bench.engine.build import build
from bench.engine.execution import Execution
from bench.engine.fingerprint import fingerprint
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import run_evaluations
from bench.engine.setup import load_setup
from bench.losses import kl
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream, isolated
from bench.results.store import Store
from bench.testing import DefenseContract
from bench.threat import ThreatModel
from tests.toys import message

THREAT = ThreatModel("linf", 0.05)
ONCE = Schedule(epochs=1, batch=12, rate=0.02, steps=2)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(seed=0):
    return Noise.of(seed, Stream.BUILD, [0])


@pytest.fixture(scope="module")
def teacher():
    return Classifier(SmallNet(gratings(96, first=1000)), CLASSES).eval()


@pytest.fixture(scope="module")
def source():
    images = gratings(48, first=500)
    return TaggedImages(images.pixels(), images.labels, Tag.TRAINING)


@pytest.fixture
def learn(teacher, source):
    """Trains a copy of the teacher."""

    def train(schedule=ONCE, objective="trades", images=source, seed=0, **options):
        student = options.pop("student", None) or copy.deepcopy(teacher)
        training = StudentTraining(
            images,
            read_objective(objective),
            schedule,
            THREAT,
            held_out=options.pop("held_out", None),
        )
        options = {"needs": {Need.TRAINING_DATA}, **options}
        return train_student(student, teacher, training, noise(seed), **options)

    return train


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Losses -------------------------------------------------------------------------------------------

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
    found = {
        name: (kind().inner, kind().start, kind().clean_pass) for name, kind in OBJECTIVES.items()
    }
    assert found == {
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


# GradRefine ---------------------------------------------------------------------------------------

ROWS = torch.tensor(
    [
        [0.4, 0.3, -0.2, 0, 0.1],
        [0.2, -0.1, -0.1, 0.5, -0.1],
        [-0.1, 0.2, -0.3, 0, 0.2],
        [0.3, -0.6, -0.1, 0, -0.3],
    ]
)


def refined(rows, threshold, size=None):
    refine = GradRefine(size or len(rows), threshold)
    for row in rows:
        refine.add([row[:2], row[2:].reshape(3, 1)])
    return torch.cat([part.flatten() for part in refine.take()])


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.5, [0.9, 0, -0.7, 0, 0]),
        (0.25, [0.9, 0, -0.7, 0.5, 0]),
        (0.75, [0, 0, -0.7, 0, 0]),
        (1.0, [0, 0, -0.7, 0, 0]),
        (0.0, [0.9, 0, -0.7, 0.5, 0]),
    ],
)
def test_gradrefine_sums_what_agrees(threshold, expected):
    assert torch.allclose(refined(ROWS, threshold), torch.tensor(expected), atol=1e-7)


def test_a_remainder_is_judged_by_its_own_size():
    assert torch.allclose(
        refined(ROWS[:2], 0.75, size=4), torch.tensor([0.6, 0, -0.3, 0, 0]), atol=1e-7
    )


def test_gradrefine_of_one_batch_is_that_batch():
    gradients = [torch.randn(4, 3, generator=rng()), torch.tensor([0.0, 1e-30, -1e30])]
    refine = GradRefine(1, 1.0)
    for _ in range(2):
        refine.add(gradients)
        assert refine.full
        assert (
            all(torch.equal(a, b) for a, b in zip(refine.take(), gradients, strict=True))
            and not refine.full
        )


def test_gradrefine_counts_beyond_a_byte_and_rounds_no_threshold_up():
    ones = torch.ones(300, 5)
    assert torch.equal(refined(ones, 1.0), torch.full((5,), 300.0))
    votes = torch.zeros(100, 5)
    votes[:7] = 1
    assert torch.equal(refined(votes, 0.07), torch.full((5,), 7.0)), (
        "7 of 100 are 0.07, though 0.07 * 100 is more than 7"
    )


def test_a_masked_element_still_moves_by_momentum_and_decay():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimiser = Schedule(1, 1, rate=0.1, decay=0.01).make_optimiser([weight])
    moves = []
    for gradient in (1.0, 0.0, 0.0):
        before = weight.item()
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
        moves.append(weight.item() - before)
    assert moves == pytest.approx([-0.1919, -0.0833, -0.0757], abs=5e-5)


def test_where_everything_is_masked_the_weights_still_decay(learn, teacher, monkeypatch):
    take = GradRefine.take
    monkeypatch.setattr(
        GradRefine, "take", lambda self: [torch.zeros_like(refined) for refined in take(self)]
    )
    student = learn(Schedule(epochs=1, batch=48, rate=0.1, decay=0.5, steps=1)).student
    for before, after in zip(teacher.parameters(), student.parameters(), strict=True):
        # v = wd theta; the step is lr (wd theta + 0.9 v).
        assert torch.allclose(after, (1 - 0.1 * 1.9 * 0.5) * before)


class Plain:
    """One batch a step, as plain descent has it."""

    full = True

    def __init__(self, size, threshold):
        assert size == 1

    def add(self, gradients):
        self.gradients = gradients

    def take(self):
        return self.gradients


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_groups_of_one_are_plain_descent(learn, monkeypatch, optimiser):
    schedule = replace(ONCE, epochs=2, optimiser=optimiser)
    refined = learn(schedule).student
    monkeypatch.setattr(trainer, "GradRefine", Plain)
    assert same(refined, learn(schedule).student)


def test_groups_step_together_and_the_last_one_may_be_smaller(learn, monkeypatch):
    counts = []

    class Counting(GradRefine):
        def take(self):
            counts.append(self.count)
            return super().take()

    monkeypatch.setattr(trainer, "GradRefine", Counting)
    learn(replace(ONCE, epochs=2, batch=10, group=3))
    assert counts == [3, 1, 3, 1], "48 images are four batches of 10"


# The inner attack ---------------------------------------------------------------------------------


def kl_slope(model, images, points):
    anchor = logits_of(model, images)
    leaf = points.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(kl(anchor, model(leaf, noise())).sum(), leaf)
    return slope.abs().max().item()


def test_the_kl_attack_needs_its_noisy_start(teacher, source):
    images = source.images[:8]
    start = starting_points(images, "gaussian", THREAT, Noise.of(0, Stream.BUILD, range(8)))
    assert kl_slope(teacher, images, images) < 1e-7 and kl_slope(teacher, images, start) > 1e-5
    assert 0.0005 < (start - images).std() < 0.0015


@pytest.mark.parametrize("threat", [ThreatModel("linf", 0.05), ThreatModel("l2", 0.7)], ids=str)
@pytest.mark.parametrize("begin", ["gaussian", "uniform"])
def test_the_search_stays_in_ball_and_box_raises_its_objective_and_changes_nothing(
    teacher, source, threat, begin
):
    images = source.images[:8].clone()
    images[0] = 0.0
    images[1] = 1.0
    student = copy.deepcopy(teacher).requires_grad_(True)
    anchor = logits_of(student, images)
    start = starting_points(images, begin, threat, Noise.of(0, Stream.BUILD, range(8)))
    points = search(
        student, lambda logits, rows: kl(anchor[rows], logits), start, images, threat, 10
    )
    assert (
        threat.contains(points, images).all()
        and threat.contains(start, images).all()
        and not points.requires_grad
    )
    assert (kl(anchor, logits_of(student, points)) > kl(anchor, logits_of(student, start)))[
        2:
    ].all()
    assert same(student, teacher) and all(
        one.requires_grad and one.grad is None for one in student.parameters()
    )
    with pytest.raises(RuntimeError, match="put the model into evaluation mode"):
        search(student.train(), lambda logits, rows: logits[:, 0], start, images, threat, 1)
    assert torch.equal(student.network.norm.running_mean, teacher.network.norm.running_mean)


def test_the_steps_reach_from_one_end_of_the_ball_to_the_other():
    weight = torch.tensor([1.0, -2.0, 3.0, -4.0]).reshape(1, 1, 2, 2)

    class Slope(nn.Module):
        def forward(self, x):
            score = (x * weight).flatten(1).sum(1)
            return torch.stack([score, -score], 1)

    images = torch.full((2, 1, 2, 2), 0.5)
    model = Classifier(Slope(), 2).eval()
    start = images + 0.1 * weight.sign()
    points = search(
        model, lambda logits, rows: -logits[:, 0], start, images, ThreatModel("linf", 0.1), 4
    )
    assert torch.allclose(points, images - 0.1 * weight.sign())


# The trainer --------------------------------------------------------------------------------------


def test_a_defense_may_train_on_what_it_declared_alone(learn, source):
    assert accepted(()) == {"synthetic"}
    assert accepted({Need.TRAINING_DATA}) == {"synthetic", "training"}
    assert accepted({Need.PUBLIC_IMAGES}) == {"synthetic", "public"}
    assert accepted({Need.GENERATOR, Need.UNLABELLED_TEST}) == {
        "synthetic",
        "generated",
        "unlabelled",
    }
    assert accepted(set(Need)) == set(Tag), "no tag is for test images"
    for needs in (set(), {Need.TRAINING_DATA}, set(Need)):
        for tag in Tag:
            if tag in accepted(needs):
                check_tag(replace(source, tag=tag), needs)
            else:
                with pytest.raises(AccessDenied, match="declare what it uses"):
                    check_tag(replace(source, tag=tag), needs)
    with pytest.raises(AccessDenied):
        learn(needs={Need.PUBLIC_IMAGES})
    with pytest.raises(AccessDenied):
        learn(replace(ONCE, checkpoint="best"), held_out=replace(source, tag=Tag.PUBLIC))


def count_passes(classifier):
    """Counts rows that go through a network, by kind."""
    counts = Counter()

    def forward(module, _inputs, output):
        mode = "train" if module.training else "eval"
        counts[f"{mode} forward"] += len(output)
        if output.requires_grad:
            output.register_hook(
                lambda gradient: counts.update({f"{mode} backward": len(gradient)})
            )

    classifier.network.register_forward_hook(forward)
    next(classifier.network.parameters()).register_hook(lambda _: counts.update({"to weights": 1}))
    return counts


@pytest.mark.parametrize(
    ("objective", "clean_eval", "in_loss"),
    [
        ("datafreeshield", 1, 2),
        ("trades", 1, 2),
        ("mart", 0, 2),
        ("rslad", 0, 2),
        ("pgd-at", 0, 1),
        ("rslad:clean=0", 0, 1),
    ],
)
def test_passes_of_a_training_step(teacher, source, objective, clean_eval, in_loss):
    labeller, student = copy.deepcopy(teacher), copy.deepcopy(teacher).requires_grad_(True)
    asked, counts = count_passes(labeller), count_passes(student)
    schedule = replace(ONCE, epochs=2, steps=10)
    training = StudentTraining(source, read_objective(objective), schedule, THREAT)
    train_student(student, labeller, training, noise(), needs={Need.TRAINING_DATA})
    n, seen = len(source.images), 2 * len(source.images)
    assert asked == {"eval forward": n}, "the teacher answers each image once"
    batches = seen // ONCE.batch
    assert counts == {
        "eval forward": (10 + clean_eval) * seen,
        "eval backward": 10 * seen,
        "train forward": in_loss * seen,
        "train backward": in_loss * seen,
        "to weights": batches,
    }, "the ten backward passes of the attack stop at the image"


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


def test_eps_rises_over_the_warm_up(learn, monkeypatch):
    used = []
    monkeypatch.setattr(
        training_step_module,
        "search",
        lambda model, objective, start, images, threat, steps: used.append(threat.eps) or start,
    )
    learn(replace(ONCE, epochs=2, warmup=0.5))
    assert used == pytest.approx([0.0125, 0.025, 0.0375, 0.05, 0.05, 0.05, 0.05, 0.05])


@pytest.mark.parametrize(
    ("schedule", "expected"), [("const", [1, 1, 1, 1]), ("cosine", [1, 0.853553, 0.5, 0.146447])]
)
def test_learning_rates(learn, monkeypatch, schedule, expected):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self)
    )
    learn(replace(ONCE, epochs=2, group=3, schedule=schedule))
    assert rates == pytest.approx([0.02 * share for share in expected], rel=1e-5), (
        "two steps an epoch: three batches and one"
    )


class Norm(nn.Module):
    """Batch normalisation of the image itself, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(x).flatten(1))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, 0.81 * 5 + 0.09 * 0.2 + 0.1 * 0.7),
        ({"bn_updates": 3}, 0.729 * 5 + 0.171 * 0.2 + 0.1 * 0.7),
        ({"bn": "frozen"}, 5),
    ],
)
def test_what_batchnorm_learns_from_a_batch(monkeypatch, how, expected):
    with isolated(0):
        model = Classifier(Norm(), 2).eval()
    model.network.norm.running_mean.fill_(5)
    images = 0.2 + torch.tensor([0.1, -0.1]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    monkeypatch.setattr(
        training_step_module,
        "search",
        lambda model, objective, start, images, threat, steps: images + 0.5,
    )
    student = copy.deepcopy(model)
    schedule = Schedule(epochs=1, batch=2, **how)
    source = TaggedImages(images, None, Tag.SYNTHETIC)
    training = StudentTraining(source, read_objective("trades"), schedule, THREAT)
    train_student(student, model, training, noise(), needs=[])
    assert student.network.norm.running_mean.item() == pytest.approx(expected)
    assert not torch.equal(student.network.norm.weight, model.network.norm.weight)


def test_without_labels_the_teacher_answers(learn, teacher, source):
    labelled = replace(source, labels=logits_of(teacher, source.images).argmax(1))
    wrong = replace(source, labels=(labelled.labels + 1) % CLASSES)
    unlabelled = learn(objective="mart", images=replace(source, labels=None)).student
    assert same(unlabelled, learn(objective="mart", images=labelled).student)
    assert not same(unlabelled, learn(objective="mart", images=wrong).student)


def test_clipping_bounds_the_common_norm():
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert [g.item() for g in clipped(gradients, 1.0)] == pytest.approx([0.6, 0.8])
    assert [g.item() for g in clipped(gradients, 6.0)] == [3, 4] and clipped(
        gradients, 0.0
    ) is gradients


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


def test_splitting_keeps_every_image_once(source):
    train, held = split(source, 0.25, noise())
    assert len(held.images) == 12 and len(train.images) == 36 and held.tag == source.tag
    rows = {image.numpy().tobytes() for part in (train, held) for image in part.images}
    assert rows == {image.numpy().tobytes() for image in source.images}
    index = [int((source.images == image).flatten(1).all(1).nonzero()) for image in held.images]
    assert torch.equal(held.labels, source.labels[index])


# The defenses -------------------------------------------------------------------------------------

QUICK = "scale=smoke,epochs=1,steps=2"


class TestPgdAt(DefenseContract):
    defense = f"pgd-at:{QUICK}"


class TestTrades(DefenseContract):
    defense = f"trades:{QUICK},checkpoint=best"


class TestMart(DefenseContract):
    defense = f"mart:{QUICK},group=2"


class TestArd(DefenseContract):
    defense = f"ard:{QUICK},bn=frozen"


class TestRslad(DefenseContract):
    defense = f"rslad:{QUICK},from_scratch=true"


class TestPublicAt(DefenseContract):
    defense = f"public-at:images=(mnist5k:n=40),objective=(trades:beta=3),{QUICK}"


@pytest.fixture(scope="module")
def setup():
    return load_setup(Request(n=8))


def evaluations(setup, *defenses):
    return [
        evaluation
        for evaluation in plan(Request(defenses=defenses, attacks=("pgd:steps=2",)), setup)
        if evaluation.defense.name != "undefended"
    ]


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


def test_how_many_images_a_student_sees(setup, monkeypatch, tmp_path):
    counts = []
    for module in (training_data, public_at):
        monkeypatch.setattr(
            module,
            "trained_student",
            lambda student, training, *_: counts.append(len(training.images.images)) or student,
        )
    archive = tmp_path / "public.npz"
    np.savez(archive, x_test=np.zeros((250, 8, 8), dtype=np.uint8), y_test=np.arange(250) % 2)
    public = [
        f"public-at:images=({text}),scale=smoke"
        for text in (f"npz:{archive}", f"npz:{archive},n=210")
    ]
    for defense in (
        "pgd-at:scale=smoke",
        "pgd-at:scale=smoke,n=300",
        "pgd-at:scale=full",
        *public,
    ):
        build(evaluations(setup, defense)[0], torch.device("cpu"))
    assert counts == [200, 300, 4000, 200, 210]


def test_parameters():
    params = TrainingParams(scale="medium", epochs=3, eps="8/255")
    assert (params.training_schedule().epochs, params.training_schedule().batch) == (3, 100)
    assert params.ball(ThreatModel("l2", 1.0)) == ThreatModel("l2", 8 / 255)
    assert TrainingParams().ball(THREAT) == THREAT
    for wrong in ("0", "-1", "much", "1/0"):
        with pytest.raises(ValueError, match=r"write auto, or a positive number|not a fraction"):
            TrainingParams(eps=wrong)
    assert (
        PublicAtParams(images="mnist5k:n=5").images == "(mnist5k:n=5)"
        and PublicAtParams(images="(mnist5k)").images == "mnist5k"
    )
    assert PublicAtParams(images="mnist5k", objective="(trades:beta=6)").objective == "trades"
    assert (
        PublicAtParams(images="mnist5k", objective="(trades:beta=3.0)").objective
        == "(trades:beta=3)"
    )


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


def test_a_row_of_public_at_says_what_it_used(tmp_path, setup):
    archive = tmp_path / "public.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 20, 3), dtype=np.uint8)
    np.savez(archive, x_test=pixels, y_test=np.arange(30) % 4)
    (evaluation,) = evaluations(setup, f"public-at:images=(npz:{archive},n=20),{QUICK}")
    (result,) = run_evaluations([evaluation], Store(tmp_path / "results"), Execution())
    record = result.record
    assert (
        record is not None
        and record.access == ["public images"]
        and f"npz:{archive},n=20" in record.title["defense"]
    )
    assert (
        set(record.identity["data"]) == {"public images"}
        and len(record.identity["data"]["public images"]) == 64
    )
    notes = [finding.message for finding in record.findings if finding.name == "built"]
    assert notes == ["trained by rslad inside linf 0.1; public images: 20, epochs: 1"]
    assert [f.message for f in record.findings if f.name == "public-images"] == [
        f"the public images are 20 of npz:{archive}"
    ]
    (fewer,) = evaluations(setup, f"public-at:images=(npz:{archive},n=19),{QUICK}")
    assert fewer.identity["data"] != evaluation.identity["data"]
    json.dumps(record.identity)


@pytest.mark.slow
def test_training_on_mnist5k_keeps_most_images_right(tmp_path):
    base, trained = plan(Request(defenses=("pgd-at",), attacks=("pgd",), n=200))
    for evaluation, low, high in ((base, 0, 0.05), (trained, 0.8, 1)):
        (result,) = run_evaluations([evaluation], Store(tmp_path), Execution())
        right = result.record.outcomes.adversarial == result.record.outcomes.labels[:, None]
        assert low <= right.mean() <= high
