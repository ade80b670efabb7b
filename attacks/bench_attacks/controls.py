"""Controls: attacks that use no gradient, to compare the real ones with."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bench.attack import Attack, Passes
from bench.defense import Card, NoParams
from bench.losses import margin
from bench.randomness import Query
from bench.spec import Params
from bench.threat import ThreatModel
from bench.victim import Victim
from bench_attacks.pgd import random_point


class Null(Attack[NoParams]):
    """No perturbation: what judging alone costs a stochastic defense."""

    card = Card(note="control", control=True)

    def passes(self, num_classes: int = 10) -> Passes | None:
        """None are needed."""
        del num_classes
        return Passes(0)

    def run(self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        """The images themselves."""
        return images


class NoiseParams(Params):
    """Parameters of `noise`."""

    tries: int = Field(
        10, ge=1, le=100_000, description="random points an image, of which the worst is kept"
    )


class RandomNoise(Attack[NoiseParams]):
    """Random points of the ball, the one with the largest margin kept: what a search without
    gradients finds.
    """

    Params = NoiseParams
    card = Card(note="control", control=True)

    def passes(self, num_classes: int = 10) -> Passes | None:
        """One forward pass a try."""
        del num_classes
        return Passes(self.params.tries)

    def run(self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        """The worst of `tries` random points."""
        rows = torch.arange(len(images), device=images.device)
        points = images.clone()
        best = torch.full((len(images),), -torch.inf, device=images.device)
        for attempt in range(self.params.tries):
            candidates = random_point(victim, images, rows, threat, attempt)
            logits = victim.logits(candidates, rows, Query(restart=attempt))
            draws = logits.shape[1]
            values = (
                margin(logits.flatten(0, 1), labels.repeat_interleave(draws))
                .reshape(-1, draws)
                .mean(1)
            )
            better = values > best
            points[better], best[better] = candidates[better], values[better]
        return points
