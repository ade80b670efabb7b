"""One training step of a student: the inner attack, the passes of the loss, the gradients; whoever
made the images.

The loops over fixed images (`bench_defenses.adversarial.trainer`) and over a generator's
(`bench_defenses.generators.loop`) are made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from bench_defenses.adversarial.objectives import Objective, StudentOutputs

LOGITS_BATCH = 500
"""Images in a forward pass without gradient."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How a student descends, wherever its batches come from.

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

    def make_optimiser(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimiser of these parameters."""
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

    def eps_share(self, batch: int, total: int) -> float:
        """The share of eps at a batch, counted from 1 to `total`."""
        rise = self.warmup * total
        return min(1.0, batch / rise) if rise else 1.0


@dataclass(frozen=True)
class TrainingBatch:
    """A batch that the student is trained on.

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
class TrainingStep:
    """What came of a step: gradients in the order of the student's parameters, the loss, the
    outputs that it was made of; all detached.
    """

    gradients: list[Tensor]
    loss: Tensor
    outputs: StudentOutputs


InnerObjective = Callable[[Tensor, Tensor], Tensor]
"""What the inner attack maximises: (logits (m, K), which images of the batch they belong to (m,))
to one value an image (m,).
"""


def search(
    model: DefendedClassifier,
    objective: InnerObjective,
    start: Tensor,
    images: Tensor,
    threat: ThreatModel,
    steps: int,
) -> Tensor:
    """The last iterate of projected ascent on `objective`, by steps of 2.5 eps / steps: exactly
    `steps` forward and backward passes.

    `model` must be in evaluation mode; its parameters and buffers are left as they are.
    """
    noise = unused_noise(images)

    def read(x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
        nothing = torch.zeros(len(x), device=x.device)
        if not gradient:
            # Training takes the last iterate whatever its value, so a pass to read it would be
            # wasted.
            return Reading(nothing, None, nothing.bool())
        leaf = x.detach().requires_grad_(True)
        values = objective(model(leaf, noise), rows)
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


def logits_of(model: DefendedClassifier, images: Tensor) -> Tensor:
    """Logits (n, K) of a classifier in evaluation mode, without gradient, on its device; each image
    passes once.
    """
    parts = []
    with torch.no_grad():
        for pixels in images.split(LOGITS_BATCH):
            there = pixels.to(device_of(model))
            parts.append(model(there, unused_noise(there)))
    return torch.cat(parts)


def adversarial_points(
    student: DefendedClassifier,
    batch: TrainingBatch,
    objective: Objective,
    threat: ThreatModel,
    steps: int,
) -> Tensor:
    """The adversarial points of a batch for a student in evaluation mode; none where the
    objective's loss reads none.
    """
    if not objective.attacked_pass:
        return batch.images[:0]
    start = starting_points(batch.images, objective.start, threat, batch.noise)
    inner = _inner_objective(student, batch, objective)
    return search(student, inner, start, batch.images, threat, steps)


def _inner_objective(
    student: DefendedClassifier, batch: TrainingBatch, objective: Objective
) -> InnerObjective:
    """What the inner attack maximises; the student's clean logits are computed once for all
    steps.
    """
    if objective.inner == "label":
        return lambda logits, rows: cross_entropy(logits, batch.labels[rows])
    anchor = batch.teacher if objective.inner == "teacher" else logits_of(student, batch.images)
    return lambda logits, rows: kl(anchor[rows], logits)


def training_step(
    student: DefendedClassifier,
    batch: TrainingBatch,
    points: Tensor,
    objective: Objective,
    descent: Descent,
    dropout_seed: int,
) -> TrainingStep:
    """The loss of a batch and its adversarial points, and its gradient to the student's weights.

    The student is in training mode for the passes of the loss and nowhere else; `dropout_seed`
    decides whatever it draws there.
    """
    student.train(descent.bn == "train")
    with isolated(dropout_seed):
        clean, robust = _passes(student, batch.images, points, objective, descent)
    student.eval()
    outputs = StudentOutputs(clean, robust, batch.teacher, batch.labels)
    loss = objective.loss(outputs)
    parameters = list(student.parameters())
    gradients = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        )
    ]
    detached = replace(outputs, clean=clean.detach(), attacked=robust.detach())
    return TrainingStep(gradients, loss.detach(), detached)


def _passes(
    student: DefendedClassifier,
    images: Tensor,
    points: Tensor,
    objective: Objective,
    descent: Descent,
) -> tuple[Tensor, Tensor]:
    """The student's logits in the loss, clean and attacked; no rows of those that nothing reads."""
    noise = unused_noise(images)
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


def apply_gradients(
    optimiser: torch.optim.Optimizer, gradients: Sequence[Tensor], rate: float
) -> None:
    """One step of an optimiser with a single parameter group, by these gradients at this rate."""
    (group,) = optimiser.param_groups
    group["lr"] = rate
    for parameter, gradient in zip(group["params"], gradients, strict=True):
        parameter.grad = gradient
    optimiser.step()
    optimiser.zero_grad()


def unused_noise(images: Tensor) -> Noise:
    """Noise for a deterministic classifier, which ignores it."""
    return Noise.of(0, Stream.BUILD, range(len(images)), device=images.device)
