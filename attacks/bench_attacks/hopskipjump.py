"""`hopskipjump`: an attack that reads answers alone."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bench.attack import Attack, AttackOutput, Passes
from bench.defense import Card, Setting
from bench.errors import BadInput
from bench.searches import by_answers
from bench.searches.answers import most_queries
from bench.spec import Params
from bench.threat import ThreatModel
from bench.victim import Victim

LEAST = 250
"""Queries of the starts and of the first round."""


class HopSkipJumpParams(Params):
    """Parameters of `hopskipjump`."""

    queries: int = Field(
        5000, ge=LEAST, le=1_000_000, description="points asked about for each image, at most"
    )
    distances: bool = Field(
        False, description="go on inside the ball for the smallest distance, and record it"
    )


class HopSkipJump(Attack[HopSkipJumpParams]):
    """Along the boundary by answers alone, no logits and no gradients; Linf and L2.

    x = a broken image, moved to the boundary by bisection
    repeat: probes around x, of which some are broken, give the boundary's slope
            step along it; bisection towards the image

    What hides gradients or logits does not stop it. It needs many queries, so that a search that
    may read logits (`square`) breaks more with as many; what it breaks and a gradient attack does
    not is evidence that gradients are masked. An image leaves at its first point in the ball where
    the attacked function is fixed, unless `distances=true`.
    """

    Params = HopSkipJumpParams
    positional = "queries"
    card = Card(
        paper="Chen, Jordan and Wainwright, IEEE S&P 2020, arXiv 1904.02144, algorithm 2",
        note="reads whether an answer is wrong, and nothing else",
    )

    @property
    def measures(self) -> bool:
        return self.params.distances

    def passes(self, num_classes: int = 10) -> Passes | None:
        return Passes(most_queries(self.params.queries))

    def check(self, setting: Setting) -> None:
        """Refuse norms that the search does not know."""
        _check_norm(setting.threat)

    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> AttackOutput:
        """The nearest broken point where it lies in the ball, else the ball's point on the way
        there.
        """
        _check_norm(threat)
        found = by_answers(
            victim,
            images,
            labels,
            torch.arange(len(images), device=images.device),
            threat,
            queries=self.params.queries,
            until_inside=not self.params.distances,
        )
        distances = found.distances if self.params.distances else None
        return AttackOutput(found.inside, distances=distances)


def _check_norm(threat: ThreatModel) -> None:
    if threat.norm == "l1":
        raise BadInput(f"hopskipjump searches in linf and l2, not in {threat}: give --norm linf")
