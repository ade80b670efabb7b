"""One loop for all methods: a generator and a student of a frozen classifier, trained in turn.

Everything a method differs by comes in as values: a `GeneratorSpec`, weights of the terms in
`terms.TERMS`, the student's objective, a `PairSchedule`, and what is adapted.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.defense import DefendedClassifier
from bench.errors import BadInput
from bench.models.training import device_of
from bench.noise import BuildNoise, Noise, Stream
from bench.storage.training_state import ResumableRun, Stateful, stored_counters
from bench.threat import ThreatModel
from bench.victim import frozen
from bench_defenses.adversarial.objectives import Match
from bench_defenses.adversarial.training_step import (
    Descent,
    TrainingBatch,
    adversarial_points,
    apply_gradients,
    clipped,
    logits_of,
    training_step,
)
from bench_defenses.datafree.synthesis import norm_layers, normalisation
from bench_defenses.generators.adaptation import NoAdaptation, State
from bench_defenses.generators.inundation import Inundation, lengthen, weights
from bench_defenses.generators.nets import Generator, GeneratorSpec, pixels
from bench_defenses.generators.terms import (
    TERMS,
    GeneratedBatch,
    TermInputs,
    ZerothOrder,
    measure_of,
)

STATE = "state.pt"
BatchNormMode = Literal["running", "batch"]
ROUNDS = 20
"""A run is kept and logged so many times."""


@dataclass(frozen=True)
class PairSchedule:
    """When generator and student are updated, and how fast the generator learns.

    Attributes:
        updates: student updates in all.
        batch: images a batch.
        ratio: student updates to one step of the generator.
        shared: whose update comes first where both take the same batch; `no`: each draws its own.
        warmup: steps of the generator before the student's first update.
        rate, momentum: of the generator's Adam, momentum being its first beta.
        milestones, drop: at these shares of the training all rates are multiplied by `drop`.
    """

    updates: int
    batch: int
    ratio: int = 1
    shared: Literal["no", "student-first", "generator-first"] = "no"
    warmup: int = 0
    rate: float = 1e-3
    momentum: float = 0.9
    milestones: tuple[float, ...] = ()
    drop: float = 1.0

    def __post_init__(self) -> None:
        if self.updates % self.ratio:
            raise BadInput(
                f"{self.updates} student updates are no whole number of iterations of "
                f"{self.ratio}: give a multiple of {self.ratio}"
            )
        if self.shared != "no" and self.ratio != 1:
            raise BadInput(
                "a batch shared by generator and student allows one update an iteration, not "
                f"ratio={self.ratio}: drop it"
            )

    @property
    def iterations(self) -> int:
        """Of the loop, without the warm-up."""
        return self.updates // self.ratio

    def dropped(self, share: float) -> float:
        """The factor of all rates when `share` of the training is done."""
        return self.drop ** sum(share >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Plan:
    """A whole run; every field changes its result.

    Attributes:
        generator: what it is.
        terms: of its loss, by weight.
        objective: what the student minimises.
        descent: how the student descends.
        schedule: when each of them is updated.
        threat: the ball of the inner attack.
        shape: of an image, (C, H, W).
        estimator: of the gradient through both networks; None: exact.
        inundation: of the student's steps; None for none.
        batchnorm_mode: statistics of the student's BatchNorm layers in the generator's step.
            `running`: its own, as deployed; `batch`: the batch's, as in the student's updates.
    """

    generator: GeneratorSpec
    terms: Mapping[str, float]
    objective: Match
    descent: Descent
    schedule: PairSchedule
    threat: ThreatModel
    shape: tuple[int, ...]
    estimator: ZerothOrder | None = None
    inundation: Inundation | None = None
    batchnorm_mode: BatchNormMode = "running"


@dataclass(frozen=True)
class Round:
    """A stretch of the run, for the log.

    Attributes:
        step: steps of the loop done, the warm-up included.
        loss: mean loss of the student; None in the warm-up.
        terms: mean values of the generator's terms, unweighted.
        entropy: of the classifier's predictions on the student's batches, over log K; 1: all
            classes alike.
        largest_share: of one class among these predictions.
        distance: mean distance of two images of the last batch, root mean square over pixels.
        adapted: the adaptive state at the end.
    """

    step: int
    loss: float | None
    terms: dict[str, float]
    entropy: float | None
    largest_share: float | None
    distance: float
    adapted: State


@dataclass(frozen=True)
class PairResult:
    """What a run leaves: student (frozen, in evaluation mode), generator, the log and the passes.

    `passes` has forwards, backwards that end in the image and backwards to the weights of each
    network, in rows; `images` and `generator_steps` count what the generator made and learnt.
    """

    student: DefendedClassifier
    generator: Generator
    rounds: tuple[Round, ...]
    passes: dict[str, int]


def train_pair(
    student: DefendedClassifier,
    classifier: DefendedClassifier,
    plan: Plan,
    adaptation: NoAdaptation,
    noise: BuildNoise,
    *,
    folder: Path | None = None,
    report: Callable[[Round], None] | None = None,
) -> PairResult:
    """Train `student` in place, and a generator of its images.

    Args:
        student: a copy of the classifier, or a fresh network of its kind.
        classifier: the teacher, in evaluation mode; it sees no adversarial point and is not
            changed.
        plan: how.
        adaptation: fresh.
        noise: one row of the construction stream; on one device and number of threads the same
            noise gives the same bits, whether or not the run was interrupted.
        folder: where the state is kept after each round, and from which this very run goes on; the
            caller removes it.
        report: called after each round.

    Raises `BadInput` for images or batches that the generator cannot make, and for losses that are
    not finite.
    """
    plan.generator.check(plan.shape, classifier.num_classes, plan.schedule.batch)
    run = PairRun(student, classifier, plan, adaptation, noise.seed("generator training"))
    with frozen(classifier), run.counted():
        run.finish(None if folder is None else folder / STATE, report)
    return PairResult(
        student.eval().requires_grad_(False), run.generator, tuple(run.rounds), dict(run.passes)
    )


def steps_of(schedule: PairSchedule) -> int:
    """Steps of the loop, the warm-up included."""
    return schedule.warmup + schedule.iterations


def steps_done(folder: Path) -> int:
    """How many steps of an interrupted run `folder` holds. Raises `BadInput` where its state cannot
    be read.
    """
    return int(stored_counters(folder / STATE).get("step", 0))


@dataclass
class _RoundValues:
    """What a round collects for its log."""

    losses: list[Tensor] = field(default_factory=list)
    terms: list[dict[str, float]] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)


class PairRun(ResumableRun[Round]):
    """The training of a student and a generator, a round at a time."""

    def __init__(
        self,
        student: DefendedClassifier,
        classifier: DefendedClassifier,
        plan: Plan,
        adaptation: NoAdaptation,
        seed: int,
    ) -> None:
        self.student = student.eval().requires_grad_(True)
        self.classifier, self.plan = classifier, plan
        self.adaptation, self.seed, self.device = adaptation, seed, device_of(student)
        fresh = BuildNoise(seed).seed("generator")
        mean, std = (value.flatten() for value in normalisation(classifier))
        self.generator = plan.generator.build(
            plan.shape, classifier.num_classes, fresh, mean, std
        ).to(self.device)
        schedule = plan.schedule
        self.generator_optimiser = torch.optim.Adam(
            self.generator.parameters(), lr=schedule.rate, betas=(schedule.momentum, 0.999)
        )
        self.student_optimiser = plan.descent.make_optimiser(list(student.parameters()))
        self.total = steps_of(schedule)
        self.step, self.batches_drawn, self.student_updates = 0, 0, 0
        self.passes: Counter[str] = Counter()
        self.rounds: list[Round] = []
        self.values = _RoundValues()

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total

    # Steps

    def advance(self) -> Round:
        """Steps up to the next end of a round."""
        self.values = _RoundValues()
        end = min(self.total, self.step + math.ceil(self.total / ROUNDS))
        while self.step < end:
            last = self._iterate()
            self.step += 1
        done = self._logged(last)
        if not all(math.isfinite(value) for value in [*done.terms.values(), done.loss or 0.0]):
            raise BadInput(
                f"a training loss is not finite by step {self.step}: lower rate or generator_rate, "
                "or clip the gradient"
            )
        self.rounds.append(done)
        return done

    def _iterate(self) -> GeneratedBatch:
        """One step of the loop; the last batch."""
        schedule, batch = self.plan.schedule, self.draw()
        if self.step < schedule.warmup or schedule.shared == "no":
            self.update_generator(batch)
            for _ in range(schedule.ratio if self.step >= schedule.warmup else 0):
                with torch.no_grad():
                    batch = self.draw()
                self.update_student(batch)
            return batch
        order = (self.update_student, self.update_generator)
        for update in order if schedule.shared == "student-first" else reversed(order):
            update(batch)
        return batch

    def draw(self) -> GeneratedBatch:
        """The generator's next batch."""
        spec, size = self.plan.generator, self.plan.schedule.batch
        noise = Noise.of(self.seed, Stream.BUILD, range(size), self.batches_drawn, self.device)
        self.batches_drawn += 1
        self.passes["images"] += size
        labels = spec.classes(noise, self.classifier.num_classes)
        return GeneratedBatch(self.generator(spec.draw(noise), labels), labels, noise)

    def update_generator(self, batch: GeneratedBatch) -> None:
        """One step of the generator; student and classifier are only read."""
        plan = self.plan
        with frozen(self.student), self._batchnorm_mode():
            objective = self.adaptation.objective(plan.objective)
            inputs = TermInputs(
                batch,
                self.classifier,
                self.student,
                objective,
                measure_of(plan.terms),
                plan.estimator,
            )
            terms = {name: TERMS[name](inputs) for name in plan.terms}
            loss = torch.stack(
                [weight * terms[name] for name, weight in self.adaptation.weights().items()]
            ).sum()
            gradients = torch.autograd.grad(loss, list(self.generator.parameters()))
        rate = plan.schedule.rate * plan.schedule.dropped(self._share)
        apply_gradients(self.generator_optimiser, gradients, rate)
        self.passes["generator steps"] += 1
        values = {name: float(term.detach()) for name, term in terms.items()}
        self.adaptation.generator_updated(values)
        self.values.terms.append(values)

    def _batchnorm_mode(self) -> AbstractContextManager[None]:
        if self.plan.batchnorm_mode == "batch":
            return batch_statistics(self.student)
        return nullcontext()

    def update_student(self, generated: GeneratedBatch) -> None:
        """One update of the student, by the step that every adversarial training is made of."""
        plan, images = self.plan, generated.images.detach()
        if generated.teacher_logits is None:
            generated.teacher_logits = logits_of(self.classifier, images)
        objective = self.adaptation.objective(plan.objective)
        teacher = generated.teacher_logits
        batch = TrainingBatch(images, teacher, teacher.argmax(1), generated.noise)
        eps_share = plan.descent.eps_share(self.student_updates + 1, plan.schedule.updates)
        threat = replace(plan.threat, eps=plan.threat.eps * eps_share)
        points = adversarial_points(self.student, batch, objective, threat, plan.descent.steps)
        dropout = BuildNoise(self.seed, self.student_updates).seed("dropout")
        step = training_step(self.student, batch, points, objective, plan.descent, dropout)
        self._descend(clipped(step.gradients, plan.descent.clip))
        self.adaptation.student_updated(objective, step.outputs, self._share)
        self.student_updates += 1
        self.passes["attacked images"] += len(points)
        self.values.losses.append(step.loss)
        self.values.labels.append(batch.labels)

    def _descend(self, gradients: list[Tensor]) -> None:
        plan, schedule = self.plan, self.plan.schedule
        rate = plan.descent.rate_after(self.student_updates, schedule.updates)
        rate = rate * schedule.dropped(self._share)
        before = (
            [weight.detach().clone() for weight in weights(self.student)] if plan.inundation else []
        )
        apply_gradients(self.student_optimiser, gradients, rate)
        if plan.inundation:
            lengthen(before, self.student, plan.inundation)

    @property
    def _share(self) -> float:
        """Of the student's updates that are done."""
        return self.student_updates / self.plan.schedule.updates

    # Log and counters

    def _logged(self, last: GeneratedBatch) -> Round:
        values = self.values
        terms = {
            name: sum(one[name] for one in values.terms) / len(values.terms)
            for name in self.plan.terms
        }
        entropy, largest = (
            spread(torch.cat(values.labels), self.classifier.num_classes)
            if values.labels
            else (None, None)
        )
        return Round(
            step=self.step,
            loss=float(torch.stack(values.losses).mean()) if values.losses else None,
            terms=terms,
            entropy=entropy,
            largest_share=largest,
            distance=distance(last.images.detach()),
            adapted=dict(self.adaptation.state),
        )

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Inside the block every row that passes a network is counted, forwards and backwards."""
        networks = {
            "generator": self.generator,
            "teacher": self.classifier,
            "student": self.student,
        }
        with ExitStack() as stack:
            for name, network in networks.items():
                stack.enter_context(count_passes(network, name, self.passes))
            yield

    # Interruption

    def parts(self) -> Mapping[str, Stateful]:
        """Both networks and their optimisers."""
        return {
            "student": self.student,
            "generator": self.generator,
            "student optimiser": self.student_optimiser,
            "generator optimiser": self.generator_optimiser,
        }

    def counters(self) -> dict[str, Any]:
        """What is adapted, the passes, the log, and how far each count is."""
        return {
            "adapted": self.adaptation.state,
            "passes": dict(self.passes),
            "rounds": [asdict(one) for one in self.rounds],
            **{name: getattr(self, name) for name in _COUNTS},
        }

    def take_up(self, counters: dict[str, Any]) -> None:
        """Go on from these."""
        self.adaptation.state = dict(counters["adapted"])
        # In place: `counted` has given this very counter to the networks' hooks.
        self.passes.clear()
        self.passes.update(counters["passes"])
        self.rounds = [Round(**one) for one in counters["rounds"]]
        for name in _COUNTS:
            setattr(self, name, counters[name])


_COUNTS = ("step", "batches_drawn", "student_updates")


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Inside the block BatchNorm layers use the statistics of their batch, and learn none; the rest
    of the network is as it was.

    `network` must be in evaluation mode.
    """
    layers = norm_layers(network)
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer in layers:
            layer.training, layer.track_running_stats = False, True


@contextmanager
def count_passes(network: nn.Module, name: str, counts: Counter[str]) -> Iterator[None]:
    """Count rows through `network` inside the block, as `NAME forwards`, `NAME input backwards` and
    `NAME weight backwards`.

    A backward pass goes to the weights where they took a gradient during the forward pass.
    """

    def hook(module: nn.Module, _inputs: object, output: Tensor) -> None:
        counts[f"{name} forwards"] += len(output)
        if output.requires_grad:
            learns = next(module.parameters()).requires_grad
            key, rows = f"{name} {'weight' if learns else 'input'} backwards", len(output)
            output.register_hook(lambda _: counts.update({key: rows}))

    handle = network.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def spread(labels: Tensor, classes: int) -> tuple[float, float]:
    """Entropy of the predicted classes (n,) over log K, and the share of the commonest one."""
    shares = torch.bincount(labels, minlength=classes).double() / len(labels)
    entropy = -float(torch.xlogy(shares, shares).sum()) / math.log(classes)
    return max(0.0, entropy), float(shares.max())


def distance(images: Tensor) -> float:
    """Mean distance between two images of a batch (n, C, H, W), root mean square over pixels; 0 for
    one image.
    """
    flat = images.flatten(1)
    return float(torch.pdist(flat).mean()) / math.sqrt(flat.shape[1]) if len(flat) > 1 else 0.0


def sampled(
    generator: Generator,
    spec: GeneratorSpec,
    count: int,
    batch: int,
    classes: int,
    noise: BuildNoise,
) -> Iterator[Tensor]:
    """Batches of images (n, C, H, W) of a trained generator, `count` in all, each batch normalised
    by itself as in training.

    The generator's running statistics are left as they are. `noise` is one row of the construction
    stream.
    """
    generator = copy.deepcopy(generator).train()
    root = noise.seed("samples")
    for first in range(0, count, batch):
        rows = Noise.of(
            root, Stream.BUILD, range(first, first + batch), device=device_of(generator)
        )
        with torch.no_grad():
            images = pixels(generator(spec.draw(rows), spec.classes(rows, classes)))
        yield images[: count - first]
