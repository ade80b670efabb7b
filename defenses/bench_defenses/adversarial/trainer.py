"""Adversarial training of a student on images of any source.

An image-visit with ten attack steps costs 13 forward passes of the student (one clean and ten
attacked ones in the attack, a clean and an attacked one in the loss), ten backward passes to the
image and two to the weights; the teacher answers each image once in a run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bench.defense import DefendedClassifier, Need
from bench.errors import BadInput
from bench.losses import cross_entropy
from bench.models.training import device_of
from bench.noise import Noise, Stream
from bench.storage.checkpoint import read_checkpoint, write_checkpoint
from bench.threat import ThreatModel
from bench_defenses.adversarial.gradrefine import GradRefine
from bench_defenses.adversarial.objectives import Objective
from bench_defenses.adversarial.source import Source, check_tag
from bench_defenses.adversarial.visits import (
    LOGITS_BATCH,
    Batch,
    Descent,
    Value,
    answers,
    attacked,
    climb,
    clipped,
    move,
    starting_points,
    visited,
)

STATE = "state.pt"


@dataclass(frozen=True)
class Schedule(Descent):
    """Everything of a training run besides images, objective and threat.

    Attributes:
        epochs: passes over the images.
        batch: images a batch; an incomplete last batch is left out.
        group, agreement: batches behind one step of the optimiser, and GradRefine's threshold; see
            `GradRefine`.
        checkpoint: the student of the last epoch, or of the best one by agreement with the teacher
            on held-out images.
    """

    epochs: int
    batch: int
    group: int = 1
    agreement: float = 0.5
    checkpoint: Literal["last", "best"] = "last"


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch: how many are done and due, the mean loss, the held-out
    agreement under PGD (None: nothing is held out).
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
        teacher: labels the clean images, once each; it sees no adversarial point and is not
            changed.
        images: what to train on.
        objective: what to minimise.
        schedule: how.
        threat: the ball of the inner attack.
        noise: one row of the construction stream; on one device and number of threads the same
            noise gives the same bits, whether or not the run was interrupted.
        needs: what the defense declared; images of another source raise `AccessDenied`.
        held_out: images of the same source, apart from `images`, that choose the epoch under
            checkpoint=best.
        folder: where the state is kept after each epoch, and from which this very run goes on; the
            caller removes it.
        report: told of each finished epoch.

    Raises `BadInput` for a random classifier, a loss that is not finite, or checkpoint=best with
    nothing held out.
    """
    check_tag(images, needs)
    if held_out is not None:
        check_tag(held_out, needs)
    if schedule.checkpoint == "best" and held_out is None:
        raise BadInput(
            "checkpoint=best chooses on held-out images, but nothing is held out: choose the last"
        )
    if student.stochastic or teacher.stochastic:
        raise BadInput(
            "the classifier draws random numbers, and adversarial training needs a fixed one: give "
            "a deterministic one"
        )
    run = _Run(student, teacher, images, objective, schedule, threat, noise.seed("training"))
    judge = (
        None
        if held_out is None
        else _Judge(teacher, held_out, schedule.steps, threat, noise.seed("held out"))
    )
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
    """Passes of the student that one image-visit takes: forwards, backwards to the image, backwards
    to the weights.

    Ten steps and a loss that reads S(x) and S(x') make 13, 10 and 2, where the attack starts from
    the student's own answers.
    """
    in_loss = objective.attacked_pass + objective.clean_pass
    anchor, again = objective.inner == "student", objective.clean_pass and schedule.bn_updates == 3
    steps = schedule.steps if objective.attacked_pass else 0
    return {
        "forwards": steps + anchor + in_loss + again,
        "input_backwards": steps,
        "weight_backwards": in_loss,
    }


def epochs_done(folder: Path) -> int:
    """How many epochs of an interrupted run `folder` holds. Raises `BadInput` where its state
    cannot be read.
    """
    path = folder / STATE
    if not path.exists():
        return 0
    with read_checkpoint(path, torch.device("cpu")) as content:
        return len(content["history"])


class _Judge:
    """How often a student under PGD still gives the teacher's clean answer on held-out images."""

    def __init__(
        self,
        teacher: DefendedClassifier,
        images: Source,
        steps: int,
        threat: ThreatModel,
        seed: int,
    ) -> None:
        self.images = images.images.to(device_of(teacher))
        self.labels = answers(teacher, self.images).argmax(1)
        self.steps, self.threat = steps, threat
        noise = Noise.of(seed, Stream.BUILD, range(len(self.images)), device=self.images.device)
        self.start = starting_points(self.images, "uniform", threat, noise)

    def __call__(self, student: DefendedClassifier) -> float:
        """A share of the held-out images, the attack's start the same each time."""
        right = 0
        for rows in torch.arange(len(self.images), device=self.images.device).split(LOGITS_BATCH):
            labels = self.labels[rows]
            value: Value = lambda logits, here, labels=labels: cross_entropy(logits, labels[here])  # type: ignore[misc] # noqa: E731
            points = climb(
                student, value, self.start[rows], self.images[rows], self.threat, self.steps
            )
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
        self.optimiser = schedule.start(list(student.parameters()))
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
        losses = [
            self._visit(rows, place)
            for place, rows in enumerate(order[: self.batches * self.size].split(self.size))
        ]
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise BadInput(
                f"the training loss is {loss} in epoch {self.done + 1}: lower the learning rate, "
                "or clip the gradient"
            )
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
        """Attack a batch, enter its gradients, and step where a group is complete or the epoch
        ends; the loss.
        """
        here = rows.to(self.images.device)
        batch = Batch(
            self.images[here],
            self.teacher[here],
            self.labels[here],
            self._noise(rows.cpu().numpy()),
        )
        warmth = self.schedule.warmth(
            self.done * self.batches + place + 1, self.schedule.epochs * self.batches
        )
        threat = replace(self.threat, eps=self.threat.eps * warmth)
        points = attacked(self.student, batch, self.objective, threat, self.schedule.steps)
        dropout = self._noise([0]).seed(f"dropout{place}")
        visit = visited(self.student, batch, points, self.objective, self.schedule, dropout)
        self.refine.add(clipped(visit.gradients, self.schedule.clip))
        if self.refine.full or place + 1 == self.batches:
            self._step(place)
        return visit.loss

    def _step(self, place: int) -> None:
        each = math.ceil(self.batches / self.schedule.group)
        done = self.done * each + place // self.schedule.group
        move(
            self.optimiser,
            self.refine.take(),
            self.schedule.rate_after(done, self.schedule.epochs * each),
        )

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
        write_checkpoint(path, content)

    def restore(self, path: Path) -> None:
        """Go on where `store` was called."""
        with read_checkpoint(path, self.images.device) as content:
            self.student.load_state_dict(content["student"])
            self.optimiser.load_state_dict(content["optimiser"])
        self.history = [Epoch(**one) for one in content["history"]]
        number, state = content["kept"]
        self.kept = self.history[number - 1], state or copy.deepcopy(self.student.state_dict())
