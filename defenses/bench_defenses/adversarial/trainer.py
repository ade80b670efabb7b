"""Adversarial training of a student on images of any source.

With ten attack steps an image costs 13 forward passes of the student (one clean and ten attacked
ones in the attack, a clean and an attacked one in the loss), ten backward passes to the image and
two to the weights; the teacher labels each image once in a run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bench.defense import DefendedClassifier, Need
from bench.errors import BadInput
from bench.losses import cross_entropy
from bench.models.training import device_of
from bench.noise import BuildNoise, Noise, Stream
from bench.storage.training_state import ResumableRun, Stateful, stored_counters
from bench.threat import ThreatModel
from bench_defenses.adversarial.gradrefine import GradRefine
from bench_defenses.adversarial.objectives import Objective
from bench_defenses.adversarial.tagged_images import TaggedImages, check_tag
from bench_defenses.adversarial.training_step import (
    LOGITS_BATCH,
    Descent,
    InnerObjective,
    TrainingBatch,
    adversarial_points,
    apply_gradients,
    clipped,
    logits_of,
    search,
    starting_points,
    training_step,
)

STATE = "state.pt"


@dataclass(frozen=True)
class Schedule(Descent):
    """How long and by which steps a student is trained.

    Attributes:
        epochs: passes over the images.
        batch: images a batch; an incomplete last batch is left out.
        group, threshold: batches behind one step of the optimiser, and GradRefine's tau; see
            `GradRefine`.
        checkpoint: the student of the last epoch, or of the best one by agreement with the teacher
            on held-out images.
    """

    epochs: int
    batch: int
    group: int = 1
    threshold: float = 0.5
    checkpoint: Literal["last", "best"] = "last"


@dataclass(frozen=True)
class StudentTraining:
    """What a student is trained on, and how.

    Attributes:
        images: what to train on.
        objective: what to minimise.
        schedule: how long and by which steps.
        threat: the ball of the inner attack.
        held_out: images of the same source, apart from `images`, that choose the epoch under
            checkpoint=best; None for none.
        from_scratch: whether the student starts from fresh weights instead of the teacher's.
    """

    images: TaggedImages
    objective: Objective
    schedule: Schedule
    threat: ThreatModel
    held_out: TaggedImages | None = None
    from_scratch: bool = False


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch: how many are done, how many there will be, the mean loss, the
    held-out agreement under PGD (None: nothing is held out).
    """

    done: int
    total: int
    loss: float
    agreement: float | None


@dataclass(frozen=True)
class TrainedStudent:
    """The student, frozen, in evaluation mode; the epoch that its weights are of; all epochs."""

    student: DefendedClassifier
    kept: Epoch
    history: tuple[Epoch, ...]


def train_student(
    student: DefendedClassifier,
    teacher: DefendedClassifier,
    training: StudentTraining,
    noise: BuildNoise,
    *,
    needs: Collection[Need],
    folder: Path | None = None,
    report: Callable[[Epoch], None] | None = None,
) -> TrainedStudent:
    """Train `student` in place.

    Args:
        student: a copy of the teacher, or a fresh network of its kind, whatever
            `training.from_scratch` says.
        teacher: labels the clean images, once each; it sees no adversarial point and is not
            changed.
        training: on what, and how.
        noise: one row of the construction stream; on one device and number of threads the same
            noise gives the same bits, whether or not the run was interrupted.
        needs: what the defense declared; images of another source raise `AccessDenied`.
        folder: where the state is kept after each epoch, and from which this very run goes on; the
            caller removes it.
        report: called after each epoch.

    Raises `BadInput` for a random classifier, a loss that is not finite, or checkpoint=best with
    nothing held out.
    """
    _check(student, teacher, training, needs)
    run = StudentRun(student, teacher, training, noise)
    run.finish(None if folder is None else folder / STATE, report)
    return run.trained()


def _check(
    student: DefendedClassifier,
    teacher: DefendedClassifier,
    training: StudentTraining,
    needs: Collection[Need],
) -> None:
    check_tag(training.images, needs)
    if training.held_out is not None:
        check_tag(training.held_out, needs)
    if training.schedule.checkpoint == "best" and training.held_out is None:
        raise BadInput(
            "checkpoint=best chooses on held-out images, but nothing is held out: choose the last"
        )
    if student.stochastic or teacher.stochastic:
        raise BadInput(
            "the classifier draws random numbers, and adversarial training needs a fixed one: give "
            "a deterministic one"
        )


def passes(objective: Objective, schedule: Schedule) -> dict[str, int]:
    """Passes of the student that one image takes in one training step: forwards, backwards to the
    image, backwards to the weights.

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
    return len(stored_counters(folder / STATE).get("history", ()))


class HeldOutAgreement:
    """How often a student under PGD still gives the teacher's clean answer on held-out images."""

    def __init__(
        self,
        teacher: DefendedClassifier,
        images: TaggedImages,
        steps: int,
        threat: ThreatModel,
        seed: int,
    ) -> None:
        self.images = images.images.to(device_of(teacher))
        self.labels = logits_of(teacher, self.images).argmax(1)
        self.steps, self.threat = steps, threat
        noise = Noise.of(seed, Stream.BUILD, range(len(self.images)), device=self.images.device)
        self.start = starting_points(self.images, "uniform", threat, noise)

    def __call__(self, student: DefendedClassifier) -> float:
        """A share of the held-out images, the attack's start the same each time."""
        right = 0
        for rows in torch.arange(len(self.images), device=self.images.device).split(LOGITS_BATCH):
            labels = self.labels[rows]
            objective: InnerObjective = lambda logits, here, labels=labels: cross_entropy(  # type: ignore[misc] # noqa: E731
                logits, labels[here]
            )
            points = search(
                student, objective, self.start[rows], self.images[rows], self.threat, self.steps
            )
            right += int((logits_of(student, points).argmax(1) == labels).sum())
        return right / len(self.images)


class StudentRun(ResumableRun[Epoch]):
    """The training of a student, an epoch at a time; `noise` is one row of the construction stream.

    Attributes:
        history: the epochs so far.
        kept: the epoch that would be returned now, and its weights.
    """

    def __init__(
        self,
        student: DefendedClassifier,
        teacher: DefendedClassifier,
        training: StudentTraining,
        noise: BuildNoise,
    ) -> None:
        self.student = student.eval().requires_grad_(True)
        self.training, self.schedule = training, training.schedule
        self.seed, self.device = noise.seed("training"), device_of(student)
        self.images = training.images.images.to(self.device)
        self.teacher = logits_of(teacher, self.images)
        labels = training.images.labels
        self.labels = self.teacher.argmax(1) if labels is None else labels.to(self.device)
        self.optimiser = self.schedule.make_optimiser(list(student.parameters()))
        self.refine = GradRefine(self.schedule.group, self.schedule.threshold)
        self.size = min(self.schedule.batch, len(self.images))
        self.batches = len(self.images) // self.size
        self.history: list[Epoch] = []
        self.kept: tuple[Epoch, dict[str, Tensor]] | None = None
        self.agreement = None if training.held_out is None else self._agreement(teacher, noise)

    def _agreement(self, teacher: DefendedClassifier, noise: BuildNoise) -> HeldOutAgreement:
        held_out = self.training.held_out
        assert held_out is not None
        return HeldOutAgreement(
            teacher, held_out, self.schedule.steps, self.training.threat, noise.seed("held out")
        )

    @property
    def done(self) -> int:
        """Epochs so far."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.done >= self.schedule.epochs

    def advance(self) -> Epoch:
        """Train one epoch, and measure the agreement where something is held out."""
        noise = self._noise([0])
        order = noise.uniform("order", (len(self.images),))[0].argsort(stable=True)
        losses = [
            self._step(rows, place)
            for place, rows in enumerate(order[: self.batches * self.size].split(self.size))
        ]
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise BadInput(
                f"the training loss is {loss} in epoch {self.done + 1}: lower the learning rate, "
                "or clip the gradient"
            )
        agreement = None if self.agreement is None else self.agreement(self.student)
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

    def _step(self, rows: Tensor, place: int) -> Tensor:
        """Attack a batch, enter its gradients, and move the weights where a group is complete or
        the epoch ends; the loss.
        """
        here = rows.to(self.images.device)
        batch = TrainingBatch(
            self.images[here],
            self.teacher[here],
            self.labels[here],
            self._noise(rows.cpu().numpy()),
        )
        share = self.schedule.eps_share(
            self.done * self.batches + place + 1, self.schedule.epochs * self.batches
        )
        objective, threat = self.training.objective, self.training.threat
        threat = replace(threat, eps=threat.eps * share)
        points = adversarial_points(self.student, batch, objective, threat, self.schedule.steps)
        dropout_seed = BuildNoise(self.seed, self.done).seed(f"dropout{place}")
        step = training_step(self.student, batch, points, objective, self.schedule, dropout_seed)
        self.refine.add(clipped(step.gradients, self.schedule.clip))
        if self.refine.full or place + 1 == self.batches:
            self._move(place)
        return step.loss

    def _move(self, place: int) -> None:
        each = math.ceil(self.batches / self.schedule.group)
        done = self.done * each + place // self.schedule.group
        apply_gradients(
            self.optimiser,
            self.refine.take(),
            self.schedule.rate_after(done, self.schedule.epochs * each),
        )

    def trained(self) -> TrainedStudent:
        """What came out."""
        assert self.kept is not None
        epoch, state = self.kept
        self.student.load_state_dict(state)
        student = self.student.eval().requires_grad_(False)
        return TrainedStudent(student, epoch, tuple(self.history))

    def parts(self) -> Mapping[str, Stateful]:
        """Student and optimiser."""
        return {"student": self.student, "optimiser": self.optimiser}

    def counters(self) -> dict[str, Any]:
        """The epochs, and the kept weights where they are not the present ones."""
        assert self.kept is not None
        epoch, state = self.kept
        return {
            "history": [asdict(one) for one in self.history],
            "kept": (epoch.done, {} if epoch.done == self.done else state),
        }

    def take_up(self, counters: dict[str, Any]) -> None:
        """Go on from these."""
        self.history = [Epoch(**one) for one in counters["history"]]
        number, state = counters["kept"]
        self.kept = self.history[number - 1], state or copy.deepcopy(self.student.state_dict())
