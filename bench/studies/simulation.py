"""Simulates the attacks of `bench.studies.theory`: each point's formula beside the attack whose
success rate it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.noise import Noise, Stream
from bench.randomness import RandomnessModel
from bench.studies import theory
from bench.studies.realised import Ball, attack

TRIES = 10
"""Fresh draws that judge one point in `worst of 10`."""

SLACK = 1e-3
"""By how much a simulated probability may be off beyond four standard errors."""

WORST = f"worst of {TRIES}"

FACTS = ("judged", "radius", "distance", "eps", "rho", "step")
"""What a point has besides randomness model, n and k, where it applies: draws of the judge,
lengths, rho of `theory.phase`, step of ascent.
"""

BUDGETS, BUDGET_DIMENSIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (16, 64)
BUDGET_RADIUS, BUDGET_DISTANCE = 5.0, 6.0
RHOS = (0.9, 1.1, 1.3, 1.5, 1.7, 1.9, 2.1, 2.3)
PHASE_DIMENSIONS, PHASE_DRAWS = (64, 3072), (1, 2, 5)
_HALF_DISTANCE, _HALF_EPS = 2.0, 1.0
_ASCENT_DIMENSION, _ASCENTS = 8, ((1, 0.1), (1, 0.5), (5, 0.1), (5, 0.5))
BLOCK_NUMBERS = 1_000_000
"""Random numbers of each kind that are drawn at once."""


@dataclass(frozen=True)
class Draws:
    """Standard normal numbers of a block of trials.

    Attributes:
        seen: what the attack draws for itself, (m, k, n).
        fixed_noise: what attack and judge share under replay, (m, k, n).
        fresh: what only the judge draws, (m, tries, n).
    """

    seen: Tensor
    fixed_noise: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Point:
    """An attack in one place, with the formula of its success.

    Attributes:
        randomness: the attack's randomness model, with the adversarial set or the budget where it
            is another than the ball without one, such as `half-space, fresh`.
        k: draws that the attack averages; inf for the expectation, 0 for no attack.
        formula: the probability of success.
        facts: other numbers that belong to the point, of `FACTS`.
    """

    randomness: str
    n: int
    k: float
    formula: float
    facts: dict[str, float]

    def row(self, successes: int, trials: int) -> dict[str, object]:
        """The simulated share beside the formula. z is left out where the binomial distribution is
        far from a normal one.
        """
        simulated, error = successes / trials, math.sqrt(self.formula * (1 - self.formula) / trials)
        normal = trials * min(self.formula, 1 - self.formula) >= 5
        return {
            "randomness": self.randomness,
            "n": self.n,
            "k": self.k,
            **self.facts,
            "simulated": simulated,
            "trials": trials,
            "formula": self.formula,
            "standard_error": error,
            "z": (simulated - self.formula) / error if normal else math.nan,
            "held": abs(simulated - self.formula) <= 4 * error + SLACK,
        }


@dataclass(frozen=True)
class Case:
    """A point, and the attack whose success rate the formula should be: a block of draws to bool
    (m,).
    """

    point: Point
    broken: Callable[[Draws], Tensor]


def ball_cases(n: int, radius: float, sigma: float, draws: Sequence[int]) -> list[Case]:
    """The ball under an unlimited budget, for attacks that average so many `draws`."""
    averages = (*draws, math.inf)
    return [
        *(_centred(n, radius, sigma, k, {"radius": radius}) for k in averages),
        *(_on_fixed_noise(n, radius, sigma, k) for k in dict.fromkeys((1, *draws))),
        *(_worst(n, radius, sigma, k) for k in averages),
    ]


def _centred(n: int, radius: float, sigma: float, k: float, facts: dict[str, float]) -> Case:
    randomness = "fresh" if k == 1 else "ideal eot" if math.isinf(k) else "eot"
    point = Point(randomness, n, k, theory.eot(n, radius, sigma, k), {"judged": 1, **facts})
    return Case(point, partial(_tried, radius, sigma, k, 1))


def _worst(n: int, radius: float, sigma: float, k: float) -> Case:
    facts = {"judged": float(TRIES), "radius": radius}
    point = Point(WORST, n, k, theory.worst_of(n, radius, sigma, TRIES, k), facts)
    return Case(point, partial(_tried, radius, sigma, k, TRIES))


def _on_fixed_noise(n: int, radius: float, sigma: float, k: int) -> Case:
    randomness, formula = (
        "replay" if k == 1 else "replay-set",
        theory.replay_set(n, radius, sigma, k),
    )
    return Case(
        Point(randomness, n, k, formula, {"judged": 1, "radius": radius}),
        partial(_replayed, radius, sigma, k),
    )


def _tried(radius: float, sigma: float, k: float, tries: int, draws: Draws) -> Tensor:
    """Centre the mean of k draws (at k = inf their expectation, 0); broken where one of the judge's
    draws lands in the ball.
    """
    # delta = c - x - sigma * mean(seen), so u - c = sigma (r' - mean(seen)).
    mean = torch.zeros(()) if math.isinf(k) else draws.seen[:, : int(k)].mean(1, keepdim=True)
    return _inside(sigma * (draws.fresh[:, :tries] - mean), radius).any(1)


def _replayed(radius: float, sigma: float, k: int, draws: Draws) -> Tensor:
    """Centre the mean of k fixed noises, judged on the first of them: they are exchangeable, and a
    trial stays a yes or no.
    """
    return _inside(sigma * (draws.fixed_noise[:, 0] - draws.fixed_noise[:, :k].mean(1)), radius)


def _inside(offset: Tensor, radius: float) -> Tensor:
    return offset.square().sum(-1) <= radius**2


def budget_cases(n: int, sigma: float) -> list[Case]:
    """The ball under budgets eps: the image's distance from the ball's centre and the ball's radius
    are fixed.
    """
    place = BUDGET_RADIUS, sigma, BUDGET_DISTANCE
    facts = {"judged": 1.0, "radius": BUDGET_RADIUS, "distance": BUDGET_DISTANCE}
    cases = [
        Case(Point("clean", n, 0, theory.clean(n, *place), facts), partial(moved, *place, 0.0))
    ]
    for eps in BUDGETS:
        ideal, replay = theory.budget_eot(n, *place, eps), theory.budget_replay(n, *place, eps)
        about = {**facts, "eps": eps}
        cases += [
            Case(
                Point("ideal eot, budget", n, math.inf, ideal, about), partial(moved, *place, eps)
            ),
            Case(
                Point("replay, budget", n, 1, replay, about),
                partial(moved_under_fixed_noise, *place, eps),
            ),
        ]
    return cases


def moved(radius: float, sigma: float, distance: float, eps: float, draws: Draws) -> Tensor:
    """Go `eps` towards the centre, no further than it, and meet a fresh draw."""
    state = sigma * draws.fresh[:, 0]
    return _inside(state + max(distance - eps, 0) * _axis(state), radius)


def moved_under_fixed_noise(
    radius: float, sigma: float, distance: float, eps: float, draws: Draws
) -> Tensor:
    """Go `eps` towards the centre from where the noise puts the state, no further than it, and meet
    the same noise.
    """
    state = sigma * draws.fixed_noise[:, 0]
    state = state + distance * _axis(state)
    length = state.norm(dim=1, keepdim=True)
    return _inside(state - state * (eps / length).clamp(max=1), radius)


def _axis(like: Tensor) -> Tensor:
    axis = torch.zeros(like.shape[1])
    axis[0] = 1
    return axis


def half_space_cases(n: int, sigma: float) -> list[Case]:
    """A half-space: eps along its normal is the best move under every noise."""
    formula = theory.half_space(sigma, _HALF_DISTANCE, _HALF_EPS)
    short = _HALF_DISTANCE - _HALF_EPS
    facts = {"judged": 1.0, "distance": _HALF_DISTANCE, "eps": _HALF_EPS}
    return [
        Case(
            Point("half-space, fresh", n, 1, formula, facts),
            lambda draws: sigma * draws.fresh[:, 0, 0] >= short,
        ),
        Case(
            Point("half-space, replay", n, 1, formula, facts),
            lambda draws: sigma * draws.fixed_noise[:, 0, 0] >= short,
        ),
    ]


def phase_cases(n: int, sigma: float) -> list[Case]:
    """A ball that grows with the dimension, R^2 = rho n sigma^2."""
    cases = []
    for rho in RHOS:
        radius = math.sqrt(rho * n) * sigma
        cases += [
            _centred(n, radius, sigma, k, {"radius": radius, "rho": rho})
            for k in (*PHASE_DRAWS, math.inf)
        ]
    return cases


def simulate(cases: Sequence[Case], trials: int, k: int, seed: int) -> list[dict[str, object]]:
    """Rows for cases of one dimension; all cases see the same draws.

    Trial t is image t of the suite's noise, and one request holds all numbers of a trial: blocks of
    trials change nothing.
    """
    n = cases[0].point.n
    successes = np.zeros(len(cases), dtype=np.int64)
    block = max(1, BLOCK_NUMBERS // (k * n))
    for first in range(0, trials, block):
        draws = draw(range(first, min(first + block, trials)), k, n, seed)
        successes += [int(case.broken(draws).sum()) for case in cases]
    return [
        case.point.row(int(count), trials) for case, count in zip(cases, successes, strict=True)
    ]


def draw(trials: range, k: int, n: int, seed: int) -> Draws:
    """The numbers of these trials: attack, fixed noise and judge draw from streams of their own."""

    def normal(stream: Stream, count: int) -> Tensor:
        return Noise.of(seed, stream, trials).at("theorem").normal(str(n), (count, n))

    return Draws(normal(Stream.ATTACK, k), normal(Stream.FIXED, k), normal(Stream.EVAL, TRIES))


def ascents(ball: Ball, trials: int, seed: int) -> Iterator[dict[str, object]]:
    """Rows for constant-step ascent by the suite's own loop, on fresh draws and under fixed
    noise.
    """
    n = _ASCENT_DIMENSION

    def row(
        name: str, randomness: RandomnessModel, step: float, formula: float
    ) -> dict[str, object]:
        facts = {"judged": 1.0, "radius": ball.radius, "step": step}
        successes = int(attack(ball, n, randomness, step, trials, seed).sum())
        return Point(name, n, randomness.k, formula, facts).row(successes, trials)

    for k, step in _ASCENTS:
        formula = theory.descent(n, ball.radius, ball.sigma, k, step)
        yield row("ascent", RandomnessModel("eot", k), step, formula)
    yield row("ascent, replay", RandomnessModel("replay"), _ASCENTS[0][1], 1.0)
