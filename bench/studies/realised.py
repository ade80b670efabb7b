"""The theorem's attack carried out by the suite itself: `ascend` on a `Victim`, judged as the
engine judges.

The defended classifier is wrong inside a ball around the image 0.5, seen through Gaussian noise.
Lengths are in the units of `bench.studies.theory`; one standard deviation of the noise is 1/64 of
the pixel range, so that the box [0, 1] is never reached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench import threat
from bench.defense import DefendedClassifier
from bench.losses import margin
from bench.maximise import ascend
from bench.noise import Noise
from bench.randomness import Query, RandomnessModel, judging
from bench.victim import Victim, predict

_DEVIATIONS = 64
_START = 2.0
_REST = 1e-3
_BATCH = 4096


class Ball(DefendedClassifier):
    """Wrong where R^2 - |u - c|^2 > 0, u = x + sigma * noise; the logits are 0 and this margin, the
    true class is 0.
    """

    num_classes = 2
    stochastic = True

    def __init__(self, radius: float, sigma: float) -> None:
        super().__init__()
        self.radius = radius
        self.sigma = sigma

    @property
    def unit(self) -> float:
        """How much of the pixel range one unit of length is."""
        return 1 / (_DEVIATIONS * self.sigma)

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        """Logits (m, 2) of images (m, 1, 1, n)."""
        flat = images.flatten(1)
        # u - c = (x - 0.5) / unit + sigma r, in the units of the theory.
        state = (flat - 0.5) / self.unit + self.sigma * noise.normal("ball", (flat.shape[1],))
        inside = self.radius**2 - state.square().sum(1)
        return torch.stack([torch.zeros_like(inside), inside], 1)


@dataclass(frozen=True)
class PlainSteps(threat.ThreatModel):
    """Steps along the gradient itself, neither its sign nor its direction, as the stationary
    distribution of `bench.studies.theory.descent` assumes.
    """

    def around(self, origin: Tensor) -> threat.Ball:
        """Ball and box around these images (n, ...), in which steps are plain."""
        ball = super().around(origin)
        return _PlainBall(self, ball.origin, ball.low, ball.high)


class _PlainBall(threat.Ball):
    def ascend(self, x: Tensor, gradient: Tensor, size: float) -> Tensor:
        """x + size * gradient, projected."""
        return self.project(x + size * gradient)


def attack(
    ball: Ball, n: int, randomness: RandomnessModel, step: float, trials: int, root: int
) -> Tensor:
    """Attack `trials` images in n dimensions with a constant step, and judge each once: which are
    broken, bool (trials,).

    Under replay the judge repeats the attack's fixed noise, else it draws from the stream of
    evaluation. The start is two standard deviations from the centre, and there are so many steps
    that a thousandth of it is left.

    Args:
        randomness: how the attack's queries draw the noise.
        step: eta of `bench.studies.theory.descent`, 0 < eta < 1.
        root: root seed.
    """
    ids, labels = np.arange(trials), torch.zeros(trials, dtype=torch.int64)
    start = torch.full((trials, 1, 1, n), 0.5 + _START * ball.sigma * ball.unit / math.sqrt(n))
    victim = Victim(ball, ids, randomness=randomness, root=root, batch_size=_BATCH)
    size, whole = step * ball.unit**2, PlainSteps("linf", 0.5)
    points = ascend(
        victim.objective(labels, margin), start, start, whole, steps=steps_needed(step), size=size
    ).last
    judge = (
        victim
        if randomness.has_fixed_noise
        else Victim(ball, ids, randomness=judging(1), root=root, batch_size=_BATCH)
    )
    return predict(judge.logits(points, torch.arange(trials), Query()))[:, 0] != labels


def steps_needed(step: float) -> int:
    """Steps until a thousandth of the start's distance is left, which each step eta shrinks by
    |1 - 2 eta|.
    """
    shrink = abs(1 - 2 * step)
    return math.ceil(math.log(_REST) / math.log(shrink)) if shrink > _REST else 1
