"""Projected gradient descent and the aliases that are one loop under other settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from bench.attack import Attack, AttackOutput, Passes
from bench.defense import Card, Setting
from bench.errors import BadInput
from bench.losses import LOSSES, Loss, towards
from bench.maximise import Ascent, Objective, Reading, ascend
from bench.plugins.registry import Alias
from bench.randomness import Query
from bench.results.outcomes import NO_TARGET
from bench.spec import Params, read_number
from bench.threat import ThreatModel
from bench.victim import Victim
from bench_attacks.targets import (
    EACH,
    TARGET_HELP,
    Target,
    annealed_margin,
    check_target,
    target_classes,
)

_STEP = re.compile(r"eps(?:/(?P<divisor>\d*[1-9]\d*(?:\.\d+)?))?$")


def _check_step(text: str) -> str:
    if text != "auto" and not _STEP.match(text):
        number = read_number(text)
        if not (isinstance(number, float | str) and _is_positive(number)):
            raise ValueError("write auto, eps, eps/16, or a positive number such as 2/255")
    return text


def _is_positive(number: float | str) -> bool:
    try:
        return 0 < float(number) < float("inf")
    except ValueError:
        return False


StepSize = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_check_step)]
"""A step length: `auto` (2.5 eps / steps), `eps`, `eps/16`, or a number in pixel units such as
`2/255`.
"""


def step_length(text: str, eps: float, steps: int) -> float:
    """The step length that a `StepSize` means, in pixel units."""
    if text == "auto":
        return 2.5 * eps / max(steps, 1)
    relative = _STEP.match(text)
    if relative:
        return eps / float(relative["divisor"] or 1)
    return float(read_number(text))  # type: ignore[arg-type]


class SearchParams(Params):
    """Parameters of every search by projected gradient ascent."""

    steps: int = Field(20, ge=1, le=100_000, description="gradient steps a restart")
    step: StepSize = Field(
        "auto", description="step length: auto = 2.5 eps/steps, eps/16, or 2/255"
    )
    random_start: bool = Field(
        True, description="start at a random point of the ball, else at the image"
    )
    restarts: int = Field(1, ge=1, le=10_000, description="independent starts")


P = TypeVar("P", bound=SearchParams)


@dataclass(frozen=True)
class Attempt:
    """One search for all images.

    Attributes:
        objective: from the rows that are still searched to what is maximised.
        classes: the classes that `loss` takes, int64 (n,): the true ones, or targets; `NO_TARGET`
            where an image is not searched.
        loss: what candidates are compared by on fresh draws.
        comparable: whether the objective's values compare with those of the other searches;
            otherwise candidates are compared by `loss` everywhere.
    """

    objective: Callable[[Tensor], Objective]
    classes: Tensor
    loss: Loss
    comparable: bool = True


class Search(Attack[P]):
    """Projected gradient ascent on an objective that subclasses name.

    for each restart:
        x = a random point of the ball around the image (or the image)
        repeat `steps` times: x = project(x + step * direction(gradient of the objective))
        keep the first x that breaks the image, else the x of largest objective
    """

    @property
    def loss(self) -> Loss:
        """What candidates are compared by on fresh draws, on the logits."""
        raise NotImplementedError

    def passes(self, num_classes: int = 10) -> Passes | None:
        """One forward pass more than backward passes a restart."""
        del num_classes
        return Passes(self.params.steps + 1, self.params.steps) * self.params.restarts

    def remarks(self, setting: Setting) -> Iterable[str]:
        """A step above 2 eps, which crosses the whole ball."""
        eps = setting.threat.eps
        size = step_length(self.params.step, eps, self.params.steps)
        if self.params.steps > 1 and size > 2 * eps:
            yield f"a step of {size:g} crosses the whole ball of eps {eps:g}; 2 eps is the most"

    def objective(self, victim: Victim, labels: Tensor, rows: Tensor, restart: int) -> Objective:
        """What a restart maximises."""
        return victim.objective(labels, self.loss, rows=rows, restart=restart)

    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> Tensor | AttackOutput:
        """Each image's first success, else its best point over all restarts."""
        attempts = [
            Attempt(partial(self.objective, victim, labels, restart=restart), labels, self.loss)
            for restart in range(self.params.restarts)
        ]
        return self.best(victim, images, threat, attempts)

    def best(
        self, victim: Victim, images: Tensor, threat: ThreatModel, attempts: Sequence[Attempt]
    ) -> Tensor:
        """Each image's first success, else its best point over these searches; the image itself
        where none is meant for it.
        """
        points = images.clone()
        best = torch.full((len(images),), -torch.inf, device=images.device)
        open_ = torch.ones(len(images), dtype=torch.bool, device=images.device)
        for number, attempt in enumerate(attempts):
            rows = (open_ & (attempt.classes != NO_TARGET)).nonzero().squeeze(1)
            if not len(rows):
                continue
            ascent = self._ascend(victim, images[rows], rows, threat, attempt, number)
            candidates, values = ascent.points, ascent.values
            if not victim.fixed:
                candidates, values = _best_by_fresh_draws(victim, ascent, rows, attempt)
            elif not attempt.comparable and len(attempts) > 1:
                values = _loss_at(victim, candidates, rows, attempt)
            better = ascent.success | (values > best[rows])
            points[rows[better]], best[rows[better]] = candidates[better], values[better]
            open_[rows[ascent.success]] = False
        return points

    def _ascend(
        self,
        victim: Victim,
        images: Tensor,
        rows: Tensor,
        threat: ThreatModel,
        attempt: Attempt,
        number: int,
    ) -> Ascent:
        start = images
        if self.params.random_start:
            start = random_point(victim, images, rows, threat, number)
        return self.ascend(attempt.objective(rows), start, images, threat)

    def ascend(
        self, objective: Objective, start: Tensor, images: Tensor, threat: ThreatModel
    ) -> Ascent:
        """One search from these starts; subclasses may ascend in another way."""
        size = step_length(self.params.step, threat.eps, self.params.steps)
        return ascend(objective, start, images, threat, steps=self.params.steps, size=size)


class PGDParams(SearchParams):
    """Parameters of `pgd`."""

    loss: Literal["ce", "margin", "dlr", "softmin"] = Field(
        "ce",
        description="what is maximised; softmin, with targeted=: the margin with a gradient that "
        "is smoothed less and less",
    )
    targeted: Target = Field(None, description=TARGET_HELP)


class PGD(Search[PGDParams]):
    """Projected gradient descent on the true label's loss, or towards a target class; Linf, L2
    and L1.

    Towards a class it minimises the loss of that class, and an image's search ends when it is
    answered with it. A point that is wrong otherwise is kept before all where the answer is right.
    With more than three classes `loss=softmin` finds targets that the others miss, whose ascent
    stalls where several classes tie.
    """

    Params = PGDParams
    card = Card(paper="Madry et al., ICLR 2018, arXiv 1706.06083, section 2.1")

    @property
    def loss(self) -> Loss:
        """The one that the parameters name; points are compared by the margin under `softmin`."""
        return LOSSES["margin" if self.params.loss == "softmin" else self.params.loss]

    @property
    def targeted(self) -> bool:
        """Whether each image has one class to become; under `each` any wrong class will do."""
        return self.params.targeted not in (None, EACH)

    def passes(self, num_classes: int = 10) -> Passes | None:
        """As `Search`, for each target, and a look at the clean image where it says the order."""
        ascent = Passes(self.params.steps + 1, self.params.steps) * self.params.restarts
        if self.params.targeted == EACH:
            return Passes(1) + ascent * (num_classes - 1)
        return ascent + Passes(int(self.params.targeted == "least-likely"))

    def check(self, setting: Setting) -> None:
        """Refuse a class that is not there, and a loss that leads to none or needs one."""
        check_target(self.params.targeted, setting)
        if self.params.targeted is None and self.params.loss == "softmin":
            raise BadInput(
                "loss=softmin leads towards a class: give targeted=..., such as targeted=each"
            )
        if self.params.targeted is not None and self.params.loss == "dlr":
            raise BadInput(
                "loss=dlr does not lead towards a class: give loss=ce or loss=margin, or "
                "apgd-dlr:targeted=..., which has a targeted version"
            )

    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> Tensor | AttackOutput:
        """As `Search`; towards each target class in turn, with all restarts, where there are
        any.
        """
        if self.params.targeted is None:
            return super().run(victim, images, labels, threat)
        loss = towards(self.loss)
        classes = target_classes(self.params.targeted, victim, images, labels)
        attempts = [
            Attempt(self._aimed(victim, labels, targets, number), targets, loss)
            for number, targets in enumerate(
                targets for targets in classes for _ in range(self.params.restarts)
            )
        ]
        points = self.best(victim, images, threat, attempts)
        return AttackOutput(points, targets=classes[0] if self.targeted else None)

    def _aimed(
        self, victim: Victim, labels: Tensor, targets: Tensor, number: int
    ) -> Callable[[Tensor], Objective]:
        def objective(rows: Tensor) -> Objective:
            def towards_targets(loss: Loss) -> Objective:
                return victim.objective(
                    labels,
                    loss,
                    rows=rows,
                    restart=number,
                    targets=targets,
                    any_wrong=not self.targeted,
                )

            def annealed(x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
                loss = annealed_margin(iteration / self.params.steps)
                return towards_targets(loss)(x, rows, iteration, gradient)

            return (
                annealed if self.params.loss == "softmin" else towards_targets(towards(self.loss))
            )

        return objective


def random_point(
    victim: Victim, images: Tensor, rows: Tensor, threat: ThreatModel, restart: int
) -> Tensor:
    """A random point of each image's ball, the same for an image in whatever batch it comes."""
    noise = victim.random(rows, restart)
    shape = tuple(images.shape[1:])
    if threat.norm == "linf":
        return threat.random(images, noise.uniform("start", shape), images)
    return threat.random(images, noise.uniform("radius", (1,)), noise.normal("start", shape))


SCORING_DRAWS = 10
"""Fresh draws on which PGD compares its two candidates."""


def _best_by_fresh_draws(
    victim: Victim, ascent: Ascent, rows: Tensor, attempt: Attempt
) -> tuple[Tensor, Tensor]:
    """The better of two points, by their mean loss over draws of their own, and that loss (n,).

    The two are the point with the largest loss seen during the search, and the last iterate. Under
    fresh randomness the largest loss is a chance hit as often as it is a good point.
    """
    largest, last = (
        victim.score(points, rows, attempt.classes, attempt.loss, SCORING_DRAWS)
        for points in (ascent.points, ascent.last)
    )
    take_last = (last > largest).reshape(-1, *[1] * (ascent.points.dim() - 1))
    points = torch.where(take_last, ascent.last, ascent.points)
    return points, torch.maximum(largest, last)


def _loss_at(victim: Victim, points: Tensor, rows: Tensor, attempt: Attempt) -> Tensor:
    """The mean loss (n,) of points over the draws that all queries share."""
    logits = victim.logits(points, rows, Query())
    n, draws = logits.shape[:2]
    classes = attempt.classes[rows].repeat_interleave(draws)
    return attempt.loss(logits.flatten(0, 1), classes).reshape(n, draws).mean(1)


BPDA = Alias("pgd:gradient=bpda")
FGSM = Alias("pgd:random_start=false,step=eps,steps=1")
