"""Attacks that aim at a defense's views: its branches, its detector, the classifier inside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import BeforeValidator, Field, PlainSerializer
from torch import Tensor

from bench.attack import Passes
from bench.defense import Card
from bench.errors import BadInput
from bench.losses import Loss, margin
from bench.maximise import Objective
from bench.spec import Numbers
from bench.victim import Victim
from bench_attacks.pgd import Search, SearchParams

CAP = 1.0
"""Margin by which a view is wrong enough; what lies above it is left to the other views."""

Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda text: tuple(text.split("+")) if isinstance(text, str) else text),
    PlainSerializer(list),
]
"""A tuple of names, written `base+branch`."""


class ViewsParams(SearchParams):
    """Parameters of `views`."""

    at: Names = Field(
        description="views to break together; NAME means all views NAME:..., too", min_length=1
    )


class Views(Search[ViewsParams]):
    """PGD on the sum, over the named views of a defense, of the margin capped at 1, until all of
    them err.
    """

    Params = ViewsParams
    positional: ClassVar[str | None] = "at"
    card = Card(
        paper="the loss of Carlini and Wagner 2017, arXiv 1608.04644, f6; several objectives in "
        "one: Tramer et al. 2020, arXiv 2002.08347",
        note="an answer that is one of the views is broken whatever chooses among them; where a "
        "defense has no such view, `logits`; a survivor costs restarts x (steps + 1) forward "
        "passes of each view and of the answer, and restarts x steps backward passes of each view",
    )

    @property
    def loss(self) -> Loss:
        """The capped margin."""
        return capped_margin

    def passes(self, num_classes: int = 10) -> Passes | None:
        """Known for the answer alone; else it depends on how many views a name means."""
        return super().passes(num_classes) if self.params.at == ("logits",) else None

    def objective(self, victim: Victim, labels: Tensor, rows: Tensor, restart: int) -> Objective:
        """All named views together."""
        aims: dict[str, Loss] = dict.fromkeys(named(victim.views, self.params.at), capped_margin)
        return victim.joint(labels, aims, rows=rows, restart=restart, until_all_err=True)


class EvadeParams(SearchParams):
    """Parameters of `evade`."""

    restarts: int = Field(
        3, ge=1, le=10_000, description="independent starts, which take the weights in turn"
    )
    weights: Numbers = Field(
        (0.1, 1.0, 10.0), description="weights of the detector beside the base", min_length=1
    )


class Evade(Search[EvadeParams]):
    """PGD that fools the classifier inside a defense and its detector at once."""

    Params = EvadeParams
    card = Card(
        paper="Carlini and Wagner 2017, arXiv 1705.07263; joint losses: Bryniarski et al. 2021, "
        "arXiv 2106.15023",
        note="aims at the views base and detector; where a defense has none, at its logits",
    )

    @property
    def loss(self) -> Loss:
        """The capped margin."""
        return capped_margin

    def passes(self, num_classes: int = 10) -> Passes | None:
        """Of base, detector and answer a step."""
        del num_classes
        steps = self.params.steps
        return Passes(3 * (steps + 1), 2 * steps) * self.params.restarts

    def objective(self, victim: Victim, labels: Tensor, rows: Tensor, restart: int) -> Objective:
        """Margin of the base, capped, minus the weighted excess of the detector's alarm."""
        weight = self.params.weights[restart % len(self.params.weights)]
        if "detector" not in victim.views:
            return super().objective(victim, labels, rows, restart)
        aims: dict[str, Loss] = {"base": capped_margin, "detector": partial(alarm_penalty, weight)}
        return victim.joint(labels, aims, rows=rows, restart=restart)


def named(offered: Sequence[str], names: Sequence[str]) -> list[str]:
    """The views that these names mean; `logits` for a defense that offers none but its answer.

    Raises:
        BadInput: for a name that means none.
    """
    if not any(":" in view or view == "base" for view in offered):
        return ["logits"]
    by_name = {
        name: [view for view in offered if view == name or view.startswith(f"{name}:")]
        for name in names
    }
    for name, views in by_name.items():
        if not views:
            raise BadInput(f"this defense offers no view {name!r}: use {', '.join(offered)}")
    return list(dict.fromkeys(view for views in by_name.values() for view in views))


def capped_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """min(margin, 1) of logits (n, K): (n,)."""
    return margin(logits, labels).clamp(max=CAP)


def alarm_penalty(weight: float, outputs: Tensor, labels: Tensor) -> Tensor:
    """-weight max(0, s + 1) for the detector's outputs (n, 2), s = adversarial minus clean:
    (n,).
    """
    return -weight * torch.relu(outputs[:, 1] - outputs[:, 0] + CAP)
