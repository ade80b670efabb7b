"""`ensemble`: a suite of this project's own. It is not AutoAttack, the reference, which is
`autoattack`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from bench.attack import Attack, AttackOutput, Passes
from bench.defense import Card
from bench.losses import Loss, RowLoss
from bench.maximise import Objective, Reading, ascend, half_cosine
from bench.randomness import Query
from bench.results.findings import Finding
from bench.results.outcomes import NO_STAGE, WRONG_BEFORE
from bench.searches import square
from bench.searches.population import crossover
from bench.searches.search import accumulated
from bench.spec import Params
from bench.threat import ThreatModel
from bench.victim import Victim
from bench_attacks.best import wrong_share
from bench_attacks.ensemble.losses import LossAt, towards_at
from bench_attacks.ensemble.schedule import (
    NEAR,
    STAGES,
    Ascents,
    Crossings,
    Profile,
    Squares,
    Stage,
    Start,
    Targets,
    passes,
)

FIRST, LAST = 1.0, 0.01
"""Length of the first step in eps, and of the last one in first steps; by a cosine between."""
MOMENTUM = 0.25
"""Of the steps."""
GRADIENT_MOMENTUM = 0.3
"""Of the gradients before they make a step."""
SCORING_DRAWS = 20
"""Fresh draws of their own on which candidates are compared where queries draw freshly."""


def _told(stages: tuple[Stage, ...]) -> str:
    """What an image costs that survives: far from broken, and nearly."""
    costs = sorted({passes(stages, near=near).total for near in (False, True)})
    return " or ".join(f"{cost:,}" for cost in costs)


_COSTS = "; ".join(f"{name} {_told(stages)}" for name, stages in STAGES.items())


class EnsembleParams(Params):
    """Parameters of `ensemble`."""

    profile: Profile = Field(
        "standard", description="how much is searched: fast, standard or strong"
    )


class Ensemble(Attack[EnsembleParams]):
    """Margin, scaled cross-entropy from many corners, targeted margins and squares, one after the
    other on what is left; `strong` crosses points with each other as well. Not the reference: that
    is `autoattack`.

    An image leaves all stages at its first success where the attacked function is deterministic. An
    image that survives gets every step of every stage; those named `-near` are for images that are
    nearly broken by then.
    """

    version = 5
    Params = EnsembleParams
    positional = "profile"
    card = Card(
        paper="this project's own; parts by Carlini and Wagner 2017 (f6), Croce and Hein 2020 "
        "(arXiv 2003.01690), Andriushchenko et al. 2020 (arXiv 1912.00049), and others",
        note="not the reference AutoAttack, and no number of it may be called so; passes, forward "
        f"and backward, of an image that survives (K = 10, one draw a query): {_COSTS} "
        "(the larger one where it is nearly broken)",
    )

    @property
    def schedule(self) -> tuple[Stage, ...]:
        """The stages of the profile."""
        return STAGES[self.params.profile]

    def passes(self, num_classes: int = 10) -> Passes | None:
        """Every step of every stage."""
        return passes(self.schedule, num_classes)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.schedule)

    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> AttackOutput:
        """Each image's first success, else its point of largest margin."""
        search = _Search(victim, images, labels, threat)
        for number, stage in enumerate(self.schedule):
            search.begin(number)
            match stage:
                case Ascents():
                    search.ascents(stage)
                case Targets():
                    search.targets(stage)
                case Squares():
                    search.squares(stage)
                case Crossings():
                    search.crossings(stage)
        return AttackOutput(search.points, search.stages, tuple(search.findings))


class _Search:
    """The best point of each image so far, and which images are still searched.

    Attributes:
        points: the first success, else the point of largest value, (n, C, H, W).
        values: the margin there (the mean over the draws); under fresh draws `wrong_share`, (n,).
        clean: the margin of the image itself, (n,); -inf before an ascent began there.
        stages: number of the stage whose point is broken, under fresh draws in all that it was
            compared on; `NO_STAGE` where none is, int64 (n,).
        findings: what was left out, and why.
    """

    def __init__(self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel) -> None:
        self._victim, self._images, self._labels, self._threat = victim, images, labels, threat
        self.points = images.clone()
        self.values = torch.full((len(images),), -torch.inf, device=images.device)
        self.stages = torch.full_like(labels, NO_STAGE)
        self.clean = self.values.clone()
        self._open = torch.ones(len(images), dtype=torch.bool, device=images.device)
        self._stage = self._restart = 0
        self.findings: list[Finding] = []

    def begin(self, stage: int) -> None:
        """What follows belongs to this stage."""
        self._stage = stage

    def ascents(self, stage: Ascents) -> None:
        for _ in range(stage.starts):
            self._ascend(stage.loss, stage.steps, stage.start, stage.near)

    def targets(self, stage: Targets) -> None:
        for targets in self._ordered(stage):
            self._ascend(towards_at(self._labels, targets), stage.steps, stage.start)

    def squares(self, stage: Squares) -> None:
        restart, rows = self._next(stage.near)
        if not len(rows):
            return
        found = square(
            self._victim,
            self._images,
            self._labels,
            rows,
            self._threat,
            queries=stage.queries,
            restart=restart,
        )
        self._offer(rows, found.points, found.margins, found.success)

    def crossings(self, stage: Crossings) -> None:
        restart, rows = self._next()
        if not self._victim.fixed:
            message = (
                f"the stage {stage.name} was left out: it compares points, which draws that change "
                "from query to query do not allow; attack with +replay to run it"
            )
            self.findings.append(Finding(name="stage-left-out", verdict="note", message=message))
            return
        if not len(rows):
            return
        found = crossover(
            self._victim,
            self._images,
            self._labels,
            rows,
            self._threat,
            population=stage.population,
            starts=stage.starts,
            generations=stage.generations,
            restart=restart,
        )
        self._offer(rows, found.points, found.margins, found.success)

    def _next(self, near: bool = False) -> tuple[int, Tensor]:
        """A number of its own for the next search, whoever is left, and the images to search."""
        self._restart += 1
        searched = self._open & self._near() if near else self._open
        return self._restart - 1, searched.nonzero().squeeze(1)

    def _near(self) -> Tensor:
        """Which images are nearly broken, bool (n,)."""
        return self.values >= NEAR * self.clean if self._victim.fixed else self.values > 0

    def _ascend(self, loss_at: LossAt, steps: int, start: Start, near: bool = False) -> None:
        restart, searched = self._next(near)
        if not len(searched):
            return

        def objective(x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
            loss = loss_at(iteration / steps)
            reading = self._objective(loss, searched, restart)(x, rows, iteration, gradient)
            if start == "image" and not iteration:
                self.clean[searched[rows]] = reading.value
            return reading

        def size(iteration: int) -> float:
            fall = half_cosine(iteration, steps)
            return FIRST * self._threat.eps * (LAST + (1 - LAST) * fall)

        begin = self._start(start, searched, restart)
        ascent = ascend(
            accumulated(objective, begin, GRADIENT_MOMENTUM),
            begin,
            self._images[searched],
            self._threat,
            steps=steps,
            size=size,
            momentum=MOMENTUM,
        )
        self._offer(searched, ascent.points, ascent.values, ascent.success)
        if not self._victim.fixed:
            self._offer(searched, ascent.last, ascent.values, ascent.success)

    def _objective(self, loss: Loss | RowLoss, rows: Tensor, restart: int) -> Objective:
        return self._victim.objective(self._labels, loss, rows=rows, restart=restart)

    def _start(self, start: Start, rows: Tensor, restart: int) -> Tensor:
        """Starting points, the same for an image in whatever batch it comes."""
        images, threat = self._images[rows], self._threat
        if start == "image":
            return images
        if start == "mixed":
            return self._mixed(rows, restart)
        noise, shape = self._victim.random(rows, restart), tuple(images.shape[1:])
        if threat.norm == "linf":
            uniform = noise.uniform("start", shape)
            if start == "corner":
                uniform = (uniform >= 0.5).to(uniform.dtype)
            return threat.random(images, uniform, images)
        radius = noise.uniform("radius", (1,))
        if start == "corner":
            radius = torch.ones_like(radius)
        return threat.random(images, radius, noise.normal("start", shape))

    def _mixed(self, rows: Tensor, restart: int) -> Tensor:
        """A random corner in half of the entries, the best point so far in the others."""
        corner = self._start("corner", rows, restart)
        chosen = self._victim.random(rows, restart).uniform("mixed", tuple(corner.shape[1:])) < 0.5
        mixed = torch.where(chosen, corner, self.points[rows])
        return self._threat.project(mixed, self._images[rows])

    def _offer(self, rows: Tensor, points: Tensor, values: Tensor, success: Tensor) -> None:
        """Keep the points that are better; images with a success leave.

        Under fresh draws values seen during a search favour chance hits: there points are compared
        on draws of their own. An image leaves only where the victim is `deterministic`.
        """
        if not self._victim.deterministic:
            success = torch.zeros_like(success)
        broken = success
        if not self._victim.fixed:
            values = self._victim.score(points, rows, self._labels, wrong_share, SCORING_DRAWS)
            broken = values >= 1
        better = success | (values > self.values[rows])
        kept = rows[better]
        self.points[kept], self.values[kept] = points[better], values[better]
        clean = (points == self._images[rows]).flatten(1).all(1)
        number = torch.where(clean, WRONG_BEFORE, self._stage)
        self.stages[rows[broken & better]] = number[broken & better]
        self._open[rows[success]] = False

    # Targets --------------------------------------------------------------------------------------

    def _ordered(self, stage: Targets) -> Iterator[Tensor]:
        """The classes that images are to become, the nearest first: int64 (n,) each."""
        restart, rows = self._next()
        count = stage.classes(self._victim.num_classes)
        everything = torch.zeros(
            len(self._images), count, dtype=torch.int64, device=self._images.device
        )
        if len(rows):
            everything[rows] = self._nearest(stage, rows, restart)[:, :count]
        return iter(everything.T)

    def _nearest(self, stage: Targets, rows: Tensor, restart: int) -> Tensor:
        """Wrong classes of these images, the nearest at their best points first, int64 (a, ...).

        By their logits. With more classes than targets, those with the largest logits by gap over
        the dual norm of its gradient, which is the distance of a linear model (MALT: Melamed et al.
        2024, arXiv 2407.02240, section 3).
        """
        points, labels = self.points[rows], self._labels[rows]
        logits = self._victim.logits(points, rows, Query(restart, 0)).mean(1)
        ordered = (
            torch.nan_to_num(logits)
            .scatter(1, labels[:, None], -torch.inf)
            .argsort(dim=1, descending=True, stable=True)[:, :-1]
        )
        count = stage.candidates(self._victim.num_classes)
        if not count:
            return ordered
        distances = torch.stack(
            [self._distance(points, rows, ordered[:, j], restart, j) for j in range(count)], 1
        )
        return ordered.gather(1, distances.argsort(dim=1, stable=True))

    def _distance(
        self, points: Tensor, rows: Tensor, targets: Tensor, restart: int, number: int
    ) -> Tensor:
        """How far a linear model has each of these points from its target, (a,)."""
        every = torch.zeros_like(self._labels)
        every[rows] = targets

        def gap(logits: Tensor, labels: Tensor, at: Tensor) -> Tensor:
            picked = logits.gather(1, torch.stack([every[at], labels], 1))
            return picked[:, 0] - picked[:, 1]

        at = torch.arange(len(rows), device=rows.device)
        reading = self._objective(RowLoss(gap), rows, restart)(points, at, number + 1, True)
        assert reading.gradient is not None
        dual = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[self._threat.norm]
        length = reading.gradient.flatten(1).norm(p=dual, dim=1)
        distance: Tensor = -reading.value / length.clamp_min(1e-12)
        return distance.nan_to_num(nan=torch.inf)
