"""One loop for all methods: a generator and a student of a frozen classifier, trained in turn.

Everything a method differs by comes in as values: a `GeneratorSpec`, weights of the terms in
`terms.TERMS`, the student's objective, a `Turns`, and what is adapted.
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
from bench.noise import Noise, Stream
from bench.storage.checkpoint import read_checkpoint, write_checkpoint
from bench.threat import ThreatModel
from bench.victim import frozen
from bench_defenses.adversarial.objectives import Match
from bench_defenses.adversarial.visits import (
    Batch,
    Descent,
    answers,
    attacked,
    clipped,
    move,
    visited,
)
from bench_defenses.datafree.synthesis import norm_layers, normalisation
from bench_defenses.generators.adaptive import Fixed, State
from bench_defenses.generators.inundation import Inundation, lengthen, weights
from bench_defenses.generators.nets import Generator, GeneratorSpec, pixels
from bench_defenses.generators.terms import TERMS, Context, Made, ZerothOrder, measure_of

STATE = "state.pt"
Facing = Literal["running", "batch"]
ROUNDS = 20
"""A run is kept and logged so many times."""


@dataclass(frozen=True)
class Turns:
    """Who moves when, and how fast the generator does.

    Attributes:
        updates: student updates in all.
        batch: images a batch.
        ratio: student updates to one step of the generator.
        shared: whose step comes first where both take the same batch; `no`: each draws its own.
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
        terms: what it wants, by weight.
        objective: what the student minimises.
        descent: how the student moves.
        turns: who moves when.
        threat: the ball of the inner attack.
        estimator: of the gradient through both networks; None: exact.
        inundation: of the student's steps; None for none.
        facing: statistics of the student's BatchNorm layers in the generator's step. `running`: its
            own, as deployed; `batch`: the batch's, as in the student's updates.
    """

    generator: GeneratorSpec
    terms: Mapping[str, float]
    objective: Match
    descent: Descent
    turns: Turns
    threat: ThreatModel
    estimator: ZerothOrder | None = None
    inundation: Inundation | None = None
    facing: Facing = "running"


@dataclass(frozen=True)
class Round:
    """A stretch of the run, for the log.

    Attributes:
        step: steps of the loop done, the warm-up included.
        loss: mean loss of the student; None in the warm-up.
        terms: mean values of the generator's terms, unweighted.
        entropy: of the classifier's answers to the student's batches, over log K; 1: all classes
            alike.
        largest_share: of one class among these answers.
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
class Outcome:
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
    shape: tuple[int, ...],
    plan: Plan,
    adaptive: Fixed,
    noise: Noise,
    *,
    folder: Path | None = None,
    report: Callable[[Round], None] | None = None,
) -> Outcome:
    """Train `student` in place, and a generator of its images.

    Args:
        student: a copy of the classifier, or a fresh network of its kind.
        classifier: the teacher, in evaluation mode; it sees no adversarial point and is not
            changed.
        shape: of an image, (C, H, W).
        plan: how.
        adaptive: fresh.
        noise: one row of the construction stream; on one device and number of threads the same
            noise gives the same bits, whether or not the run was interrupted.
        folder: where the state is kept after each round, and from which this very run goes on; the
            caller removes it.
        report: told of each finished round.

    Raises `BadInput` for images or batches that the generator cannot make, and for losses that are
    not finite.
    """
    plan.generator.check(shape, classifier.num_classes, plan.turns.batch)
    run = _Run(student, classifier, shape, plan, adaptive, noise.seed("generator training"))
    if folder is not None and (folder / STATE).exists():
        run.restore(folder / STATE)
    with frozen(classifier), run.counted():
        while run.step < run.total:
            found = run.round()
            if folder is not None:
                run.store(folder / STATE)
            if report is not None:
                report(found)
    return Outcome(
        student.eval().requires_grad_(False), run.generator, tuple(run.rounds), dict(run.passes)
    )


def steps_of(turns: Turns) -> int:
    """Steps of the loop, the warm-up included."""
    return turns.warmup + turns.iterations


def steps_done(folder: Path) -> int:
    """How many steps of an interrupted run `folder` holds. Raises `BadInput` where its state cannot
    be read.
    """
    path = folder / STATE
    if not path.exists():
        return 0
    with read_checkpoint(path, torch.device("cpu")) as content:
        return int(content["step"])


@dataclass
class _Seen:
    """What a round remembers."""

    losses: list[Tensor] = field(default_factory=list)
    terms: list[dict[str, float]] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)


class _Run:
    """A run between two steps of the loop."""

    def __init__(
        self,
        student: DefendedClassifier,
        classifier: DefendedClassifier,
        shape: tuple[int, ...],
        plan: Plan,
        adaptive: Fixed,
        seed: int,
    ) -> None:
        self.student, self.classifier, self.plan = (
            student.eval().requires_grad_(True),
            classifier,
            plan,
        )
        self.adaptive, self.seed, self.device = adaptive, seed, device_of(student)
        fresh = Noise.of(seed, Stream.BUILD, [0]).seed("generator")
        mean, std = (value.flatten() for value in normalisation(classifier))
        self.generator = plan.generator.build(shape, classifier.num_classes, fresh, mean, std).to(
            self.device
        )
        turns = plan.turns
        self.artist = torch.optim.Adam(
            self.generator.parameters(), lr=turns.rate, betas=(turns.momentum, 0.999)
        )
        self.optimiser = plan.descent.start(list(student.parameters()))
        self.total, self.step, self.drawn, self.taught = steps_of(turns), 0, 0, 0
        self.passes: Counter[str] = Counter()
        self.rounds: list[Round] = []
        self.seen = _Seen()

    # Steps

    def round(self) -> Round:
        """Steps up to the next end of a round."""
        self.seen = _Seen()
        end = min(self.total, self.step + math.ceil(self.total / ROUNDS))
        while self.step < end:
            made = self._iterate()
            self.step += 1
        found = self._logged(made)
        if not all(math.isfinite(value) for value in [*found.terms.values(), found.loss or 0.0]):
            raise BadInput(
                f"a training loss is not finite by step {self.step}: lower rate or generator_rate, "
                "or clip the gradient"
            )
        self.rounds.append(found)
        return found

    def _iterate(self) -> Made:
        """One step of the loop; the last batch."""
        turns, made = self.plan.turns, self._draw()
        if self.step < turns.warmup or turns.shared == "no":
            self._move_generator(made)
            for _ in range(turns.ratio if self.step >= turns.warmup else 0):
                with torch.no_grad():
                    made = self._draw()
                self._move_student(made)
            return made
        order = (self._move_student, self._move_generator)
        for turn in order if turns.shared == "student-first" else reversed(order):
            turn(made)
        return made

    def _draw(self) -> Made:
        spec, size = self.plan.generator, self.plan.turns.batch
        noise = Noise.of(self.seed, Stream.BUILD, range(size), self.drawn, self.device)
        self.drawn += 1
        self.passes["images"] += size
        labels = spec.classes(noise, self.classifier.num_classes)
        return Made(self.generator(spec.draw(noise), labels), labels, noise)

    def _move_generator(self, made: Made) -> None:
        """One step of the generator; student and classifier are only read."""
        plan = self.plan
        with frozen(self.student), self._facing():
            objective = self.adaptive.objective(plan.objective)
            context = Context(
                made,
                self.classifier,
                self.student,
                objective,
                measure_of(plan.terms),
                plan.estimator,
            )
            values = {name: TERMS[name](context) for name in plan.terms}
            loss = torch.stack(
                [weight * values[name] for name, weight in self.adaptive.weights().items()]
            ).sum()
            gradients = torch.autograd.grad(loss, list(self.generator.parameters()))
        move(self.artist, gradients, plan.turns.rate * plan.turns.dropped(self._share))
        self.passes["generator steps"] += 1
        found = {name: float(value.detach()) for name, value in values.items()}
        self.adaptive.generated(found)
        self.seen.terms.append(found)

    def _facing(self) -> AbstractContextManager[None]:
        return batch_statistics(self.student) if self.plan.facing == "batch" else nullcontext()

    def _move_student(self, made: Made) -> None:
        """One update of the student, by the piece that every adversarial training is made of."""
        plan, images = self.plan, made.images.detach()
        if made.teacher is None:
            made.teacher = answers(self.classifier, images)
        objective = self.adaptive.objective(plan.objective)
        batch = Batch(images, made.teacher, made.teacher.argmax(1), made.noise)
        warmth = plan.descent.warmth(self.taught + 1, plan.turns.updates)
        threat = replace(plan.threat, eps=plan.threat.eps * warmth)
        points = attacked(self.student, batch, objective, threat, plan.descent.steps)
        dropout = Noise.of(self.seed, Stream.BUILD, [0], self.taught).seed("dropout")
        visit = visited(self.student, batch, points, objective, plan.descent, dropout)
        self._descend(clipped(visit.gradients, plan.descent.clip))
        self.adaptive.taught(objective, visit.seen, self._share)
        self.taught += 1
        self.passes["attacked images"] += len(points)
        self.seen.losses.append(visit.loss)
        self.seen.answers.append(batch.labels)

    def _descend(self, gradients: list[Tensor]) -> None:
        plan = self.plan
        rate = plan.descent.rate_after(self.taught, plan.turns.updates) * plan.turns.dropped(
            self._share
        )
        before = (
            [weight.detach().clone() for weight in weights(self.student)] if plan.inundation else []
        )
        move(self.optimiser, gradients, rate)
        if plan.inundation:
            lengthen(before, self.student, plan.inundation)

    @property
    def _share(self) -> float:
        """Of the student's updates that are done."""
        return self.taught / self.plan.turns.updates

    # Log and counters

    def _logged(self, made: Made) -> Round:
        terms = {
            name: sum(one[name] for one in self.seen.terms) / len(self.seen.terms)
            for name in self.plan.terms
        }
        entropy, largest = (
            spread(torch.cat(self.seen.answers), self.classifier.num_classes)
            if self.seen.answers
            else (None, None)
        )
        loss = float(torch.stack(self.seen.losses).mean()) if self.seen.losses else None
        return Round(
            self.step,
            loss,
            terms,
            entropy,
            largest,
            distance(made.images.detach()),
            dict(self.adaptive.state),
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

    def store(self, path: Path) -> None:
        """Write all that the rest of the run depends on."""
        content: dict[str, Any] = {
            "student": self.student.state_dict(),
            "generator": self.generator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "artist": self.artist.state_dict(),
            "adapted": self.adaptive.state,
            "passes": dict(self.passes),
            "rounds": [asdict(one) for one in self.rounds],
            **{name: getattr(self, name) for name in ("step", "drawn", "taught")},
        }
        write_checkpoint(path, content)

    def restore(self, path: Path) -> None:
        """Go on where `store` was called."""
        with read_checkpoint(path, self.device) as content:
            for name in ("student", "generator", "optimiser", "artist"):
                getattr(self, name).load_state_dict(content[name])
        self.adaptive.state = dict(content["adapted"])
        self.passes = Counter(content["passes"])
        self.rounds = [Round(**one) for one in content["rounds"]]
        self.step, self.drawn, self.taught = (content[name] for name in ("step", "drawn", "taught"))


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


def spread(answers: Tensor, classes: int) -> tuple[float, float]:
    """Entropy of the answered classes (n,) over log K, and the share of the commonest one."""
    shares = torch.bincount(answers, minlength=classes).double() / len(answers)
    entropy = -float(torch.xlogy(shares, shares).sum()) / math.log(classes)
    return max(0.0, entropy), float(shares.max())


def distance(images: Tensor) -> float:
    """Mean distance between two images of a batch (n, C, H, W), root mean square over pixels; 0 for
    one image.
    """
    flat = images.flatten(1)
    return float(torch.pdist(flat).mean()) / math.sqrt(flat.shape[1]) if len(flat) > 1 else 0.0


def sampled(
    generator: Generator, spec: GeneratorSpec, count: int, batch: int, classes: int, noise: Noise
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
            made = pixels(generator(spec.draw(rows), spec.classes(rows, classes)))
        yield made[: count - first]
