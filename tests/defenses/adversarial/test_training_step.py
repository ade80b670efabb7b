"""One training step: the inner attack, what BatchNorm learns, passes, rates and clipping."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from bench_defenses.adversarial import training_step as training_step_module
from bench_defenses.adversarial.objectives import (
    read_objective,
)
from bench_defenses.adversarial.tagged_images import Tag, TaggedImages
from bench_defenses.adversarial.trainer import (
    Schedule,
    StudentTraining,
    train_student,
)
from bench_defenses.adversarial.training_step import clipped, logits_of, search, starting_points
from torch import nn

from bench.defense import Need
from bench.losses import kl
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream, isolated
from bench.threat import ThreatModel
from tests.defenses.adversarial.helpers import ONCE, THREAT, noise, same


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


def test_clipping_bounds_the_common_norm():
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert [g.item() for g in clipped(gradients, 1.0)] == pytest.approx([0.6, 0.8])
    assert [g.item() for g in clipped(gradients, 6.0)] == [3, 4] and clipped(
        gradients, 0.0
    ) is gradients
