"""Projected gradient descent and the aliases that are one loop under other settings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from bench.attack import Attack
from bench.defense import Card, Setting
from bench.losses import LOSSES, Loss
from bench.maximise import Ascent, Objective, ascend
from bench.plugins.registry import Alias
from bench.spec import Params, read_number
from bench.threat import ThreatModel
from bench.victim import Victim

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

    def remarks(self, setting: Setting) -> Iterable[str]:
        """A step above 2 eps, which crosses the whole ball."""
        eps = setting.threat.eps
        size = step_length(self.params.step, eps, self.params.steps)
        if self.params.steps > 1 and size > 2 * eps:
            yield f"a step of {size:g} crosses the whole ball of eps {eps:g}; 2 eps is the most"

    def objective(self, victim: Victim, labels: Tensor, rows: Tensor, restart: int) -> Objective:
        """What a restart maximises."""
        return victim.objective(labels, self.loss, rows=rows, restart=restart)

    def run(self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        """Each image's first success, else its best point over all restarts."""
        points = images.clone()
        best = torch.full((len(images),), -torch.inf, device=images.device)
        rows = torch.arange(len(images), device=images.device)
        for restart in range(self.params.restarts):
            if not len(rows):
                break
            ascent = self._search(victim, images[rows], labels, rows, threat, restart)
            candidates, values = ascent.points, ascent.values
            if not victim.fixed:
                candidates, values = _best_by_fresh_draws(victim, ascent, rows, labels, self.loss)
            better = ascent.success | (values > best[rows])
            points[rows[better]], best[rows[better]] = candidates[better], values[better]
            rows = rows[~ascent.success]
        return points

    def _search(
        self,
        victim: Victim,
        images: Tensor,
        labels: Tensor,
        rows: Tensor,
        threat: ThreatModel,
        restart: int,
    ) -> Ascent:
        start = images
        if self.params.random_start:
            start = random_point(victim, images, rows, threat, restart)
        objective = self.objective(victim, labels, rows, restart)
        size = step_length(self.params.step, threat.eps, self.params.steps)
        return ascend(objective, start, images, threat, steps=self.params.steps, size=size)


class PGDParams(SearchParams):
    """Parameters of `pgd`."""

    loss: Literal["ce", "margin", "dlr"] = Field("ce", description="what is maximised")


class PGD(Search[PGDParams]):
    """Projected gradient descent on the true label's loss, Linf and L2."""

    Params = PGDParams
    card = Card(paper="Madry et al., ICLR 2018, arXiv 1706.06083, section 2.1")

    @property
    def loss(self) -> Loss:
        """The one that the parameters name."""
        return LOSSES[self.params.loss]


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
    victim: Victim, ascent: Ascent, rows: Tensor, labels: Tensor, loss: Loss
) -> tuple[Tensor, Tensor]:
    """The better of two points, by their mean loss over draws of their own, and that loss (n,).

    The two are the point with the largest loss seen during the search, and the last iterate. Under
    fresh randomness the largest loss is a chance hit as often as it is a good point.
    """
    largest = victim.score(ascent.points, rows, labels, loss, SCORING_DRAWS)
    last = victim.score(ascent.last, rows, labels, loss, SCORING_DRAWS)
    take_last = (last > largest).reshape(-1, *[1] * (ascent.points.dim() - 1))
    points = torch.where(take_last, ascent.last, ascent.points)
    return points, torch.maximum(largest, last)


BPDA = Alias("pgd:gradient=bpda")
FGSM = Alias("pgd:random_start=false,step=eps,steps=1")
