"""Adversarial training of a student on images of any source.

An image-visit with ten attack steps costs 13 forward passes of the student (one clean and ten attacked ones in the attack, a clean
and an attacked one in the loss), ten backward passes to the image and two to the weights; the teacher answers each image once in a
run.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.defense import DefendedClassifier, Need
from bench.errors import BadInput
from bench.losses import cross_entropy, kl
from bench.maximise import Reading, ascend
from bench.models.training import device_of
from bench.noise import Noise, Stream, isolated
from bench.record import write_whole
from bench.threat import ThreatModel
from bench.victim import frozen
from defenses.adversarial.gradrefine import GradRefine
from defenses.adversarial.objectives import Objective, Seen
from defenses.adversarial.source import Source, check_tag

STATE = "state.pt"
_LOGITS_BATCH = 500


@dataclass(frozen=True)
class Schedule:
    """Everything of a training run besides images, objective and threat.

    Attributes:
        epochs: passes over the images.
        batch: images a batch; an incomplete last batch is left out.
        optimiser: SGD with Nesterov momentum 0.9, or Adam.
        rate: learning rate of the first step.
        decay: weight decay of all parameters.
        schedule: the rate stays, or falls to 0 along half a cosine.
        warmup: share of all batches in which the training eps rises linearly to its value.
        clip: largest norm of one batch's gradient; 0 for none.
        group, agreement: batches behind one step of the optimiser, and GradRefine's threshold; see `GradRefine`.
        steps: of the inner attack, each of length 2.5 eps / steps.
        bn: whether BatchNorm uses and learns each batch's statistics in the loss, or stays as the student came.
        bn_updates: 3 runs the clean images through the student once more in training mode, as DataFreeShield's released code does.
        checkpoint: the student of the last epoch, or of the best one by agreement with the teacher on held-out images.
    """

    epochs: int
    batch: int
    optimiser: Literal["sgd", "adam"] = "sgd"
    rate: float = 1e-2
    decay: float = 1e-4
    schedule: Literal["const", "cosine"] = "const"
    warmup: float = 0.0
    clip: float = 0.0
    group: int = 1
    agreement: float = 0.5
    steps: int = 10
    bn: Literal["train", "frozen"] = "train"
    bn_updates: Literal[2, 3] = 2
    checkpoint: Literal["last", "best"] = "last"


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch: how many are done and due, the mean loss, the held-out agreement under PGD (None: nothing
    is held out).
    """

    done: int
    total: int
    loss: float
    agreement: float | None


@dataclass(frozen=True)
class Trained:
    """The student, frozen, in evaluation mode; the epoch that its weights are of; all epochs."""

    student: DefendedClassifier
    kept: Epoch
    history: tuple[Epoch, ...]


def train_student(
    student: DefendedClassifier,
    teacher: DefendedClassifier,
    images: Source,
    objective: Objective,
    schedule: Schedule,
    threat: ThreatModel,
    noise: Noise,
    *,
    needs: Collection[Need],
    held_out: Source | None = None,
    folder: Path | None = None,
    report: Callable[[Epoch], None] | None = None,
) -> Trained:
    """Train `student` in place.

    Args:
        student: a copy of the teacher, or a fresh network of its kind.
        teacher: labels the clean images, once each; it sees no adversarial point and is not changed.
        images: what to train on.
        objective: what to minimise.
        schedule: how.
        threat: the ball of the inner attack.
        noise: one row of the construction stream; on one device and number of threads the same noise gives the same bits, whether
            or not the run was interrupted.
        needs: what the defense declared; images of another source raise `AccessDenied`.
        held_out: images of the same source, apart from `images`, that choose the epoch under checkpoint=best.
        folder: where the state is kept after each epoch, and from which this very run goes on; the caller removes it.
        report: told of each finished epoch.

    Raises `BadInput` for a random classifier, a loss that is not finite, or checkpoint=best with nothing held out.
    """
    check_tag(images, needs)
    if held_out is not None:
        check_tag(held_out, needs)
    if schedule.checkpoint == "best" and held_out is None:
        raise BadInput("checkpoint=best chooses on held-out images, but nothing is held out: choose the last")
    if student.stochastic or teacher.stochastic:
        raise BadInput("the classifier draws random numbers, and adversarial training needs a fixed one: give a deterministic one")
    run = _Run(student, teacher, images, objective, schedule, threat, noise.seed("training"))
    judge = None if held_out is None else _Judge(teacher, held_out, schedule.steps, threat, noise.seed("held out"))
    if folder is not None and (folder / STATE).exists():
        run.restore(folder / STATE)
    while run.done < schedule.epochs:
        epoch = run.advance(judge)
        if folder is not None:
            run.store(folder / STATE)
        if report is not None:
            report(epoch)
    return run.trained()


def passes(objective: Objective, schedule: Schedule) -> dict[str, int]:
    """Passes of the student that one image-visit takes: forwards, backwards to the image, backwards to the weights.

    Ten steps and a loss that reads S(x) and S(x') make 13, 10 and 2, where the attack starts from the student's own answers.
    """
    in_loss = 1 + objective.clean_pass
    anchor, again = objective.inner == "student", objective.clean_pass and schedule.bn_updates == 3
    return {
        "forwards": schedule.steps + anchor + in_loss + again,
        "input_backwards": schedule.steps,
        "weight_backwards": in_loss,
    }


Value = Callable[[Tensor, Tensor], Tensor]
"""(logits (m, K), which images of the batch they belong to (m,)) to one value an image (m,)."""


def climb(model: DefendedClassifier, value: Value, start: Tensor, images: Tensor, threat: ThreatModel, steps: int) -> Tensor:
    """The last iterate of projected ascent on `value`, by steps of 2.5 eps / steps: exactly `steps` forward and backward passes.

    `model` must be in evaluation mode; its parameters and buffers are left as they are.
    """
    noise = Noise.of(0, Stream.BUILD, range(len(images)), device=images.device)

    def read(x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
        nothing = torch.zeros(len(x), device=x.device)
        if not gradient:
            # Training takes the last iterate whatever its value, so a pass to read it would be wasted.
            return Reading(nothing, None, nothing.bool())
        leaf = x.detach().requires_grad_(True)
        values = value(model(leaf, noise), rows)
        return Reading(values.detach(), torch.autograd.grad(values.sum(), leaf)[0], nothing.bool())

    with frozen(model):
        return ascend(read, start, images, threat, steps=steps, size=2.5 * threat.eps / steps).last


def starting_points(images: Tensor, start: Literal["gaussian", "uniform"], threat: ThreatModel, noise: Noise) -> Tensor:
    """Where the inner attack begins: x + 0.001 N(0, 1), or a random point of the ball; inside ball and box. One row an image."""
    shape = tuple(images.shape[1:])
    if start == "gaussian":
        return threat.project(images + 1e-3 * noise.normal("start", shape), images)
    if threat.norm == "linf":
        return threat.random(images, noise.uniform("start", shape), images)
    return threat.random(images, noise.uniform("radius", (1,)), noise.normal("start", shape))


def answers(model: DefendedClassifier, images: Tensor) -> Tensor:
    """Logits (n, K) of a classifier in evaluation mode, without gradient, where it lies; each image passes once."""
    found = []
    with torch.no_grad():
        for part in images.split(_LOGITS_BATCH):
            noise = Noise.of(0, Stream.BUILD, range(len(part)), device=device_of(model))
            found.append(model(part.to(device_of(model)), noise))
    return torch.cat(found)


def epochs_done(folder: Path) -> int:
    """How many epochs of an interrupted run `folder` holds."""
    path = folder / STATE
    return len(torch.load(path, map_location="cpu", weights_only=True)["history"]) if path.exists() else 0


class _Judge:
    """How often a student under PGD still gives the teacher's clean answer on held-out images."""

    def __init__(self, teacher: DefendedClassifier, images: Source, steps: int, threat: ThreatModel, seed: int) -> None:
        self.images = images.images.to(device_of(teacher))
        self.labels = answers(teacher, self.images).argmax(1)
        self.steps, self.threat = steps, threat
        noise = Noise.of(seed, Stream.BUILD, range(len(self.images)), device=self.images.device)
        self.start = starting_points(self.images, "uniform", threat, noise)

    def __call__(self, student: DefendedClassifier) -> float:
        """A share of the held-out images, the attack's start the same each time."""
        right = 0
        for rows in torch.arange(len(self.images), device=self.images.device).split(_LOGITS_BATCH):
            labels = self.labels[rows]
            value: Value = lambda logits, here, labels=labels: cross_entropy(logits, labels[here])  # type: ignore[misc] # noqa: E731
            points = climb(student, value, self.start[rows], self.images[rows], self.threat, self.steps)
            right += int((answers(student, points).argmax(1) == labels).sum())
        return right / len(self.images)


class _Run:
    """A training run between two epochs."""

    def __init__(
        self,
        student: DefendedClassifier,
        teacher: DefendedClassifier,
        source: Source,
        objective: Objective,
        schedule: Schedule,
        threat: ThreatModel,
        seed: int,
    ) -> None:
        self.student = student.eval().requires_grad_(True)
        self.objective, self.schedule, self.threat, self.seed = objective, schedule, threat, seed
        device = device_of(student)
        self.images = source.images.to(device)
        self.teacher = answers(teacher, self.images)
        self.labels = self.teacher.argmax(1) if source.labels is None else source.labels.to(device)
        self.parameters = list(student.parameters())
        self.optimiser = _optimiser(self.parameters, schedule)
        self.refine = GradRefine(schedule.group, schedule.agreement)
        self.size = min(schedule.batch, len(self.images))
        self.batches = len(self.images) // self.size
        self.history: list[Epoch] = []
        self.kept: tuple[Epoch, dict[str, Tensor]] | None = None

    @property
    def done(self) -> int:
        """Epochs so far."""
        return len(self.history)

    def advance(self, judge: _Judge | None) -> Epoch:
        """Train one epoch, and judge it where something is held out."""
        noise = self._noise([0])
        order = noise.uniform("order", (len(self.images),))[0].argsort(stable=True)
        losses = [self._visit(rows, place) for place, rows in enumerate(order[: self.batches * self.size].split(self.size))]
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise BadInput(f"the training loss is {loss} in epoch {self.done + 1}: lower the learning rate, or clip the gradient")
        agreement = None if judge is None else judge(self.student)
        epoch = Epoch(self.done + 1, self.schedule.epochs, loss, agreement)
        self.history.append(epoch)
        if self._is_kept(epoch):
            self.kept = epoch, copy.deepcopy(self.student.state_dict())
        return epoch

    def _is_kept(self, epoch: Epoch) -> bool:
        before = None if self.kept is None else self.kept[0].agreement
        if self.schedule.checkpoint == "last" or before is None or epoch.agreement is None:
            return True
        return epoch.agreement >= before

    def _noise(self, rows: object) -> Noise:
        return Noise.of(self.seed, Stream.BUILD, rows, self.done, self.images.device)

    def _visit(self, rows: Tensor, place: int) -> Tensor:
        """Attack a batch, enter its gradients, and step where a group is complete or the epoch ends; the loss."""
        here = rows.to(self.images.device)
        images = self.images[here]
        points = self._attack(images, here, rows, place)
        gradients, loss = self._gradients(images, points, here, place)
        self.refine.add(_clipped(gradients, self.schedule.clip))
        if self.refine.full or place + 1 == self.batches:
            self._step(place)
        return loss

    def _attack(self, images: Tensor, here: Tensor, rows: Tensor, place: int) -> Tensor:
        threat = replace(self.threat, eps=self.threat.eps * self._warmth(place))
        noise = self._noise(rows.cpu().numpy())
        start = starting_points(images, self.objective.start, threat, noise)
        return climb(self.student, self._value(images, here), start, images, threat, self.schedule.steps)

    def _value(self, images: Tensor, here: Tensor) -> Value:
        """The inner attack's objective; the student's clean answers are computed once for all steps."""
        if self.objective.inner == "label":
            labels = self.labels[here]
            return lambda logits, rows: cross_entropy(logits, labels[rows])
        anchor = self.teacher[here] if self.objective.inner == "teacher" else answers(self.student, images)
        return lambda logits, rows: kl(anchor[rows], logits)

    def _warmth(self, place: int) -> float:
        """The share of eps that training has reached."""
        rise = self.schedule.warmup * self.schedule.epochs * self.batches
        return min(1.0, (self.done * self.batches + place + 1) / rise) if rise else 1.0

    def _gradients(self, images: Tensor, points: Tensor, here: Tensor, place: int) -> tuple[list[Tensor], Tensor]:
        noise = self._noise([0])
        self.student.train(self.schedule.bn == "train")
        # Dropout draws from the global generators.
        with isolated(noise.seed(f"dropout{place}")):
            clean, attacked = self._passes(images, points)
        self.student.eval()
        loss = self.objective.loss(Seen(clean, attacked, self.teacher[here], self.labels[here]))
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]
        return gradients, loss.detach()

    def _passes(self, images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """The student's logits in the loss, clean (no rows where nothing reads them) and attacked."""
        noise = Noise.of(0, Stream.BUILD, range(len(images)), device=images.device)
        if not self.objective.clean_pass:
            attacked = self.student(points, noise)
            return attacked[:0], attacked
        clean = self.student(images, noise)
        if self.schedule.bn_updates == 3:
            with torch.no_grad():
                self.student(images, noise)
        return clean, self.student(points, noise)

    def _step(self, place: int) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(place)
        for parameter, gradient in zip(self.parameters, self.refine.take(), strict=True):
            parameter.grad = gradient
        self.optimiser.step()
        self.optimiser.zero_grad()

    def _rate(self, place: int) -> float:
        if self.schedule.schedule == "const":
            return self.schedule.rate
        each = math.ceil(self.batches / self.schedule.group)
        step = self.done * each + place // self.schedule.group
        return self.schedule.rate * (1 + math.cos(math.pi * step / (self.schedule.epochs * each))) / 2

    def trained(self) -> Trained:
        """What came out."""
        assert self.kept is not None
        epoch, state = self.kept
        self.student.load_state_dict(state)
        return Trained(self.student.eval().requires_grad_(False), epoch, tuple(self.history))

    def store(self, path: Path) -> None:
        """Write all that the rest of the run depends on."""
        assert self.kept is not None
        epoch, state = self.kept
        content: dict[str, Any] = {
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": [asdict(one) for one in self.history],
            "kept": (epoch.done, {} if epoch.done == self.done else state),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Go on where `store` was called."""
        try:
            content = torch.load(path, map_location=self.images.device, weights_only=True)
            self.student.load_state_dict(content["student"])
            self.optimiser.load_state_dict(content["optimiser"])
        except Exception as error:
            raise BadInput(f"{path} is no checkpoint of this training run: remove it") from error
        self.history = [Epoch(**one) for one in content["history"]]
        number, state = content["kept"]
        self.kept = self.history[number - 1], state or copy.deepcopy(self.student.state_dict())


def _optimiser(parameters: list[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    if schedule.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=schedule.rate, weight_decay=schedule.decay)
    return torch.optim.SGD(parameters, lr=schedule.rate, momentum=0.9, weight_decay=schedule.decay, nesterov=True)


def _clipped(gradients: list[Tensor], most: float) -> list[Tensor]:
    """Gradients whose common norm is at most `most`; as they are for 0."""
    if not most:
        return gradients
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return [gradient * (most / norm).clamp_max(1.0) for gradient in gradients]
