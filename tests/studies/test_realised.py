"""The suite's own ascent on the ball."""

import math

import numpy as np
import pytest
import torch

from bench.losses import margin
from bench.maximise import ascend
from bench.randomness import RandomnessModel
from bench.studies import realised, theory
from bench.studies.realised import Ball, attack
from bench.threat import ThreatModel
from bench.victim import Victim


@pytest.mark.parametrize(("k", "step", "trials"), [(1, 0.1, 1500), (1, 0.5, 4000), (5, 0.5, 3000)])
def test_ascent_meets_the_stationary_formula(k, step, trials):
    share = float(
        attack(Ball(1.5, 0.5), 8, RandomnessModel("eot", k), step, trials, 0).float().mean()
    )
    formula = theory.descent(8, 1.5, 0.5, k, step)
    error = math.sqrt(formula * (1 - formula) / trials)
    assert abs(share - formula) < 4 * error
    # What it would be with the draws seen but their noise forgotten, and with the step forgotten.
    assert abs(share - theory.ideal(8, 1.5, 0.5)) > 4 * error
    assert step == 0.5 or abs(share - theory.eot(8, 1.5, 0.5, k)) > 4 * error


def test_ascent_under_fixed_noise_always_arrives_and_only_under_its_own(monkeypatch):
    ball = Ball(3, 1)
    assert bool(attack(ball, 24, RandomnessModel("replay"), 0.1, 300, 0).all())
    monkeypatch.setattr(RandomnessModel, "has_fixed_noise", property(lambda randomness: False))
    assert not bool(attack(ball, 24, RandomnessModel("replay"), 0.1, 300, 0).any()), (
        "judged on fresh noise"
    )


def test_steepest_ascent_under_fixed_noise_arrives_too():
    ball, trials = Ball(3, 1), 100
    victim = Victim(ball, np.arange(trials), randomness=RandomnessModel("replay"))
    labels, start = torch.zeros(trials, dtype=torch.int64), torch.full((trials, 1, 1, 24), 0.5)
    result = ascend(
        victim.objective(labels, margin),
        start,
        start,
        ThreatModel("l2", 0.45),
        steps=40,
        size=ball.unit / 4,
    )
    assert bool(result.success.all())


def test_the_ball_stays_away_from_the_box():
    ball, low, high = Ball(3, 1), [], []

    class Watched(Ball):
        def forward(self, images, noise):
            low.append(float(images.detach().min()))
            high.append(float(images.detach().max()))
            return super().forward(images, noise)

    attack(Watched(ball.radius, ball.sigma), 8, RandomnessModel("eot", 1), 0.5, 500, 0)
    assert (
        min(low) > 0.3
        and max(high) < 0.7
        and realised.steps_needed(0.5) == 1
        and realised.steps_needed(0.1) == 31
    )
