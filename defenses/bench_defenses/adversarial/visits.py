"""A student's visit to a batch: the inner attack, the passes of the loss, the gradients; whoever
made the images.

The loops over fixed images (`defenses.adversarial.trainer`) and over a generator's
(`defenses.generators.loop`) are made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.defense import DefendedClassifier
from bench.losses import cross_entropy, kl
from bench.maximise import Reading, ascend
from bench.models.training import device_of
from bench.noise import Noise, Stream, isolated
from bench.threat import ThreatModel
from bench.victim import frozen
from bench_defenses.adversarial.objectives import Objective, Seen

LOGITS_BATCH = 500
"""Images in a forward pass without gradient."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How a student moves, wherever its batches come from.

    Attributes:
        optimiser: SGD with Nesterov momentum 0.9, or Adam.
        rate: learning rate of the first step.
        decay: weight decay of all parameters.
        schedule: the rate stays, or falls to 0 along half a cosine.
        warmup: share of all batches in which the training eps rises linearly to its value.
        clip: largest norm of one batch's gradient; 0 for none.
        steps: of the inner attack, each of length 2.5 eps / steps.
        bn: whether BatchNorm uses and learns each batch's statistics in the loss, or stays as the
            student came.
        bn_updates: 3 runs the clean images through the student once more in training mode, as
            DataFreeShield's released code does.
    """

    optimiser: Literal["sgd", "adam"] = "sgd"
    rate: float = 1e-2
    decay: float = 1e-4
    schedule: Literal["const", "cosine"] = "const"
    warmup: float = 0.0
    clip: float = 0.0
    steps: int = 10
    bn: Literal["train", "frozen"] = "train"
    bn_updates: Literal[2, 3] = 2

    def start(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser."""
        if self.optimiser == "adam":
            return torch.optim.Adam(parameters, lr=self.rate, weight_decay=self.decay)
        return torch.optim.SGD(
            parameters, lr=self.rate, momentum=0.9, weight_decay=self.decay, nesterov=True
        )

    def rate_after(self, step: int, total: int) -> float:
        """Learning rate of the next step, when `step` of `total` are done."""
        if self.schedule == "const":
            return self.rate
        return self.rate * (1 + math.cos(math.pi * step / total)) / 2

    def warmth(self, batch: int, total: int) -> float:
        """The share of eps at a batch, counted from 1 to `total`."""
        rise = self.warmup * total
        return min(1.0, batch / rise) if rise else 1.0


@dataclass(frozen=True)
class Batch:
    """Images to visit.

    Attributes:
        images, teacher, labels: (n, C, H, W) in [0, 1], the teacher's logits there (n, K), and
            labels (n,).
        noise: a row an image, for the attack's start.
    """

    images: Tensor
    teacher: Tensor
    labels: Tensor
    noise: Noise


@dataclass(frozen=True)
class Visit:
    """What came of a visit: gradients in the order of the student's parameters, the loss, the
    logits in it; all detached.
    """

    gradients: list[Tensor]
    loss: Tensor
    seen: Seen


Value = Callable[[Tensor, Tensor], Tensor]
"""(logits (m, K), which images of the batch they belong to (m,)) to one value an image (m,)."""


def climb(
    model: DefendedClassifier,
    value: Value,
    start: Tensor,
    images: Tensor,
    threat: ThreatModel,
    steps: int,
) -> Tensor:
    """The last iterate of projected ascent on `value`, by steps of 2.5 eps / steps: exactly `steps`
    forward and backward passes.

    `model` must be in evaluation mode; its parameters and buffers are left as they are.
    """
    noise = _silent(images)

    def read(x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
        nothing = torch.zeros(len(x), device=x.device)
        if not gradient:
            # Training takes the last iterate whatever its value, so a pass to read it would be
            # wasted.
            return Reading(nothing, None, nothing.bool())
        leaf = x.detach().requires_grad_(True)
        values = value(model(leaf, noise), rows)
        return Reading(values.detach(), torch.autograd.grad(values.sum(), leaf)[0], nothing.bool())

    with frozen(model):
        return ascend(read, start, images, threat, steps=steps, size=2.5 * threat.eps / steps).last


def starting_points(
    images: Tensor, start: Literal["gaussian", "uniform"], threat: ThreatModel, noise: Noise
) -> Tensor:
    """Where the inner attack begins: x + 0.001 N(0, 1), or a random point of the ball; inside ball
    and box. One row an image.
    """
    shape = tuple(images.shape[1:])
    if start == "gaussian":
        return threat.project(images + 1e-3 * noise.normal("start", shape), images)
    if threat.norm == "linf":
        return threat.random(images, noise.uniform("start", shape), images)
    return threat.random(images, noise.uniform("radius", (1,)), noise.normal("start", shape))


def answers(model: DefendedClassifier, images: Tensor) -> Tensor:
    """Logits (n, K) of a classifier in evaluation mode, without gradient, where it lies; each image
    passes once.
    """
    found = []
    with torch.no_grad():
        for part in images.split(LOGITS_BATCH):
            there = part.to(device_of(model))
            found.append(model(there, _silent(there)))
    return torch.cat(found)


def attacked(
    student: DefendedClassifier, batch: Batch, objective: Objective, threat: ThreatModel, steps: int
) -> Tensor:
    """The adversarial points of a batch for a student in evaluation mode; none where the
    objective's loss reads none.
    """
    if not objective.attacked_pass:
        return batch.images[:0]
    start = starting_points(batch.images, objective.start, threat, batch.noise)
    return climb(student, _value(student, batch, objective), start, batch.images, threat, steps)


def _value(student: DefendedClassifier, batch: Batch, objective: Objective) -> Value:
    """The inner attack's objective; the student's clean answers are computed once for all steps."""
    if objective.inner == "label":
        return lambda logits, rows: cross_entropy(logits, batch.labels[rows])
    anchor = batch.teacher if objective.inner == "teacher" else answers(student, batch.images)
    return lambda logits, rows: kl(anchor[rows], logits)


def visited(
    student: DefendedClassifier,
    batch: Batch,
    points: Tensor,
    objective: Objective,
    descent: Descent,
    dropout: int,
) -> Visit:
    """The loss of a batch and its adversarial points, and its gradient to the student's weights.

    The student is in training mode for the passes of the loss and nowhere else; `dropout` seeds
    whatever it draws there.
    """
    student.train(descent.bn == "train")
    with isolated(dropout):
        clean, robust = _passes(student, batch.images, points, objective, descent)
    student.eval()
    seen = Seen(clean, robust, batch.teacher, batch.labels)
    loss = objective.loss(seen)
    parameters = list(student.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    gradients = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
    ]
    return Visit(
        gradients, loss.detach(), Seen(clean.detach(), robust.detach(), batch.teacher, batch.labels)
    )


def _passes(
    student: DefendedClassifier,
    images: Tensor,
    points: Tensor,
    objective: Objective,
    descent: Descent,
) -> tuple[Tensor, Tensor]:
    """The student's logits in the loss, clean and attacked; no rows of those that nothing reads."""
    noise = _silent(images)
    if not objective.clean_pass:
        robust = student(points, noise)
        return robust[:0], robust
    clean = student(images, noise)
    if descent.bn_updates == 3:
        with torch.no_grad():
            student(images, noise)
    return clean, student(points, noise) if objective.attacked_pass else clean[:0]


def clipped(gradients: list[Tensor], most: float) -> list[Tensor]:
    """Gradients whose common norm is at most `most`; as they are for 0."""
    if not most:
        return gradients
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return [gradient * (most / norm).clamp_max(1.0) for gradient in gradients]


def move(optimiser: torch.optim.Optimizer, gradients: Sequence[Tensor], rate: float) -> None:
    """One step of an optimiser of one group, by these gradients at this rate."""
    (group,) = optimiser.param_groups
    group["lr"] = rate
    for parameter, gradient in zip(group["params"], gradients, strict=True):
        parameter.grad = gradient
    optimiser.step()
    optimiser.zero_grad()


def _silent(images: Tensor) -> Noise:
    """A deterministic classifier ignores its noise."""
    return Noise.of(0, Stream.BUILD, range(len(images)), device=images.device)
