"""`fmn`: at which distance each image breaks."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bench.attack import Attack, AttackOutput, Passes
from bench.defense import Card
from bench.searches import nearest
from bench.searches.minimal import passes
from bench.spec import Params
from bench.threat import ThreatModel
from bench.victim import Victim


class FMNParams(Params):
    """Parameters of `fmn`."""

    steps: int = Field(100, ge=1, le=100_000, description="steps of each walk on the margin")
    classes: int = Field(
        9, ge=0, le=10_000, description="likeliest wrong classes, a third of the steps towards each"
    )
    restarts: int = Field(
        1, ge=1, le=1_000, description="walks on the margin; all but the first from random points"
    )


class FMN(Attack[FMNParams]):
    """The nearest point that breaks each image, in the ball or not; Linf, L2 and L1.

    for each walk, on the margin or towards a wrong class:
        a ball around the image shrinks while the point in it is broken, else grows
        the point steps along the gradient, and is projected onto ball and box
    a bisection towards the image ends the search

    An image counts as broken where that point lies within eps. The distances stand beside it in
    the record: their median, and what is left at any other eps, without another run. No image
    leaves early: a nearer point may still come.
    """

    Params = FMNParams
    positional = "steps"
    card = Card(
        paper="Pintor et al., NeurIPS 2021, arXiv 2102.12827, algorithm 1",
        note="every image costs the whole budget, broken or not",
    )

    @property
    def measures(self) -> bool:
        return True

    def passes(self, num_classes: int = 10) -> Passes | None:
        classes = min(self.params.classes, num_classes - 1)
        return Passes(*passes(self.params.steps, classes, self.params.restarts))

    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> AttackOutput:
        """The nearest broken point where it lies in the ball, else the ball's point on the way
        there; and the distances.
        """
        found = nearest(
            victim,
            images,
            labels,
            torch.arange(len(images), device=images.device),
            threat,
            steps=self.params.steps,
            classes=self.params.classes,
            starts=self.params.restarts,
        )
        return AttackOutput(found.inside, distances=found.distances)
