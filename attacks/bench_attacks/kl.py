"""`kl`: away from clean answers, the defense's own or the undefended classifier's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from bench.attack import AttackOutput, Passes
from bench.defense import Card, Setting
from bench.errors import BadInput
from bench.losses import Loss, RowLoss, kl, margin
from bench.maximise import Objective
from bench.randomness import Query
from bench.threat import ThreatModel
from bench.victim import BASE_VIEW, Victim
from bench_attacks.pgd import SCORING_DRAWS, Attempt, Search, SearchParams

_SELF = "logits"
_MASKED = -1e9
"""Stands for a logit of -inf, which would make the divergence NaN."""

AIMS: dict[str, tuple[str, ...]] = {
    "self": (_SELF,),
    "teacher": (BASE_VIEW,),
    "sum": (_SELF, BASE_VIEW),
}
"""By `to`: the views whose clean answers a search leads away from, their divergences summed."""


class KLParams(SearchParams):
    """Parameters of `kl`."""

    to: Literal["self", "teacher", "sum", "each"] = Field(
        "teacher",
        description="away from whose clean answer: self, the defense's; teacher, the undefended "
        "classifier's; sum, both in one; each, the three in turn",
    )
    direction: Literal["forward", "reverse", "each"] = Field(
        "each",
        description="forward: KL(clean answer || answer); reverse: KL(answer || clean answer); "
        "each: both in turn",
    )

    @field_validator("random_start")
    @classmethod
    def _started_at_random(cls, value: bool) -> bool:
        if not value:
            raise ValueError(
                "at the image the divergence from its own clean answer is 0 and has no gradient: "
                "leave it true"
            )
        return value


class KL(Search[KLParams]):
    """PGD away from a clean answer: the defense's own, S(x), or the undefended classifier's, T(x).

        read S(x), T(x) on the clean images
        for each of `to`, each direction and each restart:
            x' = a random point of the ball
            repeat `steps` times: x' = project(x' + step * direction(gradient of the divergence))
            keep the first x' that breaks the image, else the x' of the largest margin of all

    It knows no label until it stops, so it leads away from a wrong clean answer as well.
    """

    Params = KLParams
    card = Card(
        paper="the loss of TRADES, Zhang et al., ICML 2019, arXiv 1901.08573, eq. 5, in both "
        "directions; PGD: Madry et al., ICLR 2018, arXiv 1706.06083",
        note="the setting of data-free papers is steps=10,step=eps/4",
    )

    @property
    def loss(self) -> Loss:
        """The margin, by which points of different searches are compared."""
        return margin

    def check(self, setting: Setting) -> None:
        """Refuse to compare with an undefended classifier where there is none."""
        if self.params.to != "self" and not setting.has_base:
            raise BadInput(
                f"kl:to={self.params.to} compares with the undefended classifier, and there is "
                "none beside this defense: give to=self"
            )

    def passes(self, num_classes: int = 10) -> Passes | None:
        """The clean answers, each search, and one look at the point of each of several."""
        del num_classes
        views = {view for name in self._names for view in AIMS[name]}
        searches = len(self._names) * len(self._directions) * self.params.restarts
        search = Passes(self.params.steps + 1 + int(searches > 1), self.params.steps)
        return Passes(len(views)) + search * searches

    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> Tensor | AttackOutput:
        """Each image's first success, else its point of largest margin over all searches."""
        names = self._names
        views = dict.fromkeys(view for name in names for view in AIMS[name])
        attempts = len(names) * len(self._directions) * self.params.restarts
        answers = {view: clean_answers(victim, images, view, attempts) for view in views}
        losses = [
            RowLoss(partial(divergence, [answers[view] for view in AIMS[name]], reverse))
            for name, reverse in product(names, self._directions)
            for _ in range(self.params.restarts)
        ]
        return self.best(victim, images, threat, list(_attempts(victim, labels, losses)))

    @property
    def _names(self) -> tuple[str, ...]:
        """The entries of `AIMS` that are taken in turn."""
        return tuple(AIMS) if self.params.to == "each" else (self.params.to,)

    @property
    def _directions(self) -> tuple[bool, ...]:
        """Whether the clean answer comes second in the divergence, for each direction."""
        return {"forward": (False,), "reverse": (True,), "each": (False, True)}[
            self.params.direction
        ]


def _attempts(victim: Victim, labels: Tensor, losses: list[RowLoss]) -> Iterator[Attempt]:
    """One search a loss, each under a number of its own."""

    def objective(rows: Tensor, loss: RowLoss, number: int) -> Objective:
        return victim.objective(labels, loss, rows=rows, restart=number)

    for number, loss in enumerate(losses):
        search = partial(objective, loss=loss, number=number)
        yield Attempt(search, labels, margin, comparable=False)


def clean_answers(victim: Victim, images: Tensor, view: str, restart: int) -> Tensor:
    """Logits of a view on clean images (n, draws, K).

    Where all queries read the same function, these are its answers, draw by draw. Elsewhere they
    are one answer, the mean probability over draws that no search sees, under the number `restart`.
    """
    rows = torch.arange(len(images), device=images.device)
    if victim.fixed:
        logits = victim.logits(images, rows, Query(), view)
        return logits.mean(1, keepdim=True) if victim.randomness.average == "logits" else logits
    queries = [Query(restart, number) for number in range(SCORING_DRAWS)]
    logits = torch.cat([victim.logits(images, rows, query, view) for query in queries], 1)
    return logits.double().softmax(2).mean(1, keepdim=True).log().to(logits.dtype)


def divergence(
    answers: list[Tensor], reverse: bool, output: Tensor, labels: Tensor, rows: Tensor
) -> Tensor:
    """The sum over answers (n, draws, K) of their divergence from outputs (m, K): (m,).

    The outputs are those of images `rows` (m,), draw after draw of each where there are several.
    """
    logits = output.clamp(min=_MASKED)
    terms = []
    for answer in answers:
        draw = torch.arange(len(rows), device=rows.device) % answer.shape[1]
        clean = answer[rows, draw].clamp(min=_MASKED)
        terms.append(kl(logits, clean) if reverse else kl(clean, logits))
    return torch.stack(terms).sum(0)
