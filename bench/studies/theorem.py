"""The study `theorem`: is the gap between fresh noise, EOT and replay what the formulas of `bench.theory` say?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bench import theory
from bench.noise import Law, Noise, Stream
from bench.spec import Integers, Number, Params
from bench.studies import plots
from bench.studies.realised import Ball, attack
from bench.studies.study import Study, StudyResult, StudySetting

TRIES = 10
"""Fresh draws against which one point is held in the law `worst of 10`."""

SLACK = 1e-3
"""What a simulated probability may be off beside four standard errors."""

_WORST = f"worst of {TRIES}"
_SINGLE = ("fresh", "eot", "ideal eot", "replay", "replay-set")
_BLOCK = 1000
_BUDGETS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
_BUDGET_DIMENSIONS = (16, 64)
_BUDGET_RADIUS, _BUDGET_DISTANCE = 5.0, 6.0
_HALF_DISTANCE, _HALF_EPS = 2.0, 1.0
_PHASE_DIMENSIONS = (64, 3072)
_PHASE_DRAWS = (1, 2, 5)
_RHOS = (0.9, 1.1, 1.3, 1.5, 1.7, 1.9, 2.1, 2.3)
_ASCENT_DIMENSION = 8
_ASCENTS = ((1, 0.1), (1, 0.5), (5, 0.1), (5, 0.5))

_SUCCESS = "success: formula (line), simulation (± 2 s.e.)"
_FACTS = ("judged", "radius", "distance", "eps", "rho", "step")
_COLUMNS = ("law", "n", "k", *_FACTS, "simulated", "trials", "formula", "standard_error", "z", "held")


class TheoremParams(Params):
    """What is simulated."""

    trials: int = Field(20_000, ge=100, le=10_000_000, description="attacks a point; a quarter for ascent, a tenth for the phase")
    radius: Number = Field(3.0, gt=0, description="radius of the adversarial ball")
    sigma: Number = Field(1.0, gt=0, description="standard deviation of the noise")
    dimensions: Integers = Field((1, 2, 5, 8, 12, 16, 24, 32, 64), min_length=1, description="dimensions n, joined by +")
    draws: Integers = Field((1, 2, 5, 20), min_length=1, description="draws k that an attack averages, joined by +")


@dataclass(frozen=True)
class Draws:
    """Standard normal numbers of a block of trials.

    Attributes:
        seen: what the attack draws for itself, (m, k, n).
        tape: what attack and judge share under replay, (m, k, n).
        fresh: what only the judge draws, (m, tries, n).
    """

    seen: Tensor
    tape: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Point:
    """One law at one place, with its formula.

    Attributes:
        k: draws that the attack averages; inf for the expectation, 0 for no attack.
        formula: the probability of success.
        facts: other numbers that belong to the point, of `_FACTS`.
    """

    law: str
    n: int
    k: float
    formula: float
    facts: dict[str, float]

    def row(self, successes: int, trials: int) -> dict[str, object]:
        """The simulated share beside the formula. z is left out where the binomial law is far from a normal one."""
        simulated, error = successes / trials, math.sqrt(self.formula * (1 - self.formula) / trials)
        normal = trials * min(self.formula, 1 - self.formula) >= 5
        return {
            "law": self.law,
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
    """A point, and the attack whose success rate the formula should be: a block of draws to bool (m,)."""

    point: Point
    broken: Callable[[Draws], Tensor]


class Theorem(Study[TheoremParams]):
    """Success of fresh, EOT and replay attacks behind Gaussian noise: simulation against closed formulas.

    An attack moves a state into a ball or a half-space through Gaussian noise; `bench.theory` says how often it succeeds. Each law
    is simulated with the suite's own noise, and constant-step ascent by the suite's own loop on a Victim. A point holds where
    simulation and formula differ by at most four standard errors and 0.001. Exit code 1 where one does not.
    """

    Params = TheoremParams
    uses = frozenset({"seed"})

    def run(self, setting: StudySetting) -> StudyResult:
        """Simulate all points."""
        points = pd.DataFrame(list(self._rows(setting)), columns=list(_COLUMNS))
        return StudyResult(
            tables={"success": success_table(points), "laws": law_table(points), "points": points},
            figures={
                "success": success_figure(points, self.params),
                "phase": phase_figure(points),
                "budget": budget_figure(points, self.params.sigma),
            },
            sentence=sentence(points, self.params),
            held=bool(points["held"].all()),
            scale=f"{self.params.trials} trials a point",
        )

    def _rows(self, setting: StudySetting) -> Iterator[dict[str, object]]:
        trials, seed = self.params.trials, setting.seed
        for n in self.params.dimensions:
            setting.progress(f"ball, n = {n}")
            yield from simulate(ball_cases(n, self.params), trials, max(self.params.draws), seed)
        setting.progress("finite budgets and half-spaces")
        for n in _BUDGET_DIMENSIONS:
            yield from simulate([*budget_cases(n, self.params.sigma), *half_space_cases(n, self.params.sigma)], trials, 1, seed)
        for n in _PHASE_DIMENSIONS:
            setting.progress(f"radius growing with the dimension, n = {n}")
            yield from simulate(phase_cases(n, self.params.sigma), trials // 10, max(_PHASE_DRAWS), seed)
        setting.progress("gradient ascent")
        yield from ascents(self.params, trials // 4, seed)


# The laws --------------------------------------------------------------------------------------------------------------


def ball_cases(n: int, params: TheoremParams) -> list[Case]:
    """The ball under an unlimited budget."""
    radius, sigma = params.radius, params.sigma
    averages = (*params.draws, math.inf)
    return [
        *(_centred(n, radius, sigma, k, {"radius": radius}) for k in averages),
        *(_on_tapes(n, radius, sigma, k) for k in dict.fromkeys((1, *params.draws))),
        *(_worst(n, radius, sigma, k) for k in averages),
    ]


def _centred(n: int, radius: float, sigma: float, k: float, facts: dict[str, float]) -> Case:
    law = "fresh" if k == 1 else "ideal eot" if math.isinf(k) else "eot"
    point = Point(law, n, k, theory.eot(n, radius, sigma, k), {"judged": 1, **facts})
    return Case(point, partial(_tried, radius, sigma, k, 1))


def _worst(n: int, radius: float, sigma: float, k: float) -> Case:
    facts = {"judged": float(TRIES), "radius": radius}
    point = Point(_WORST, n, k, theory.worst_of(n, radius, sigma, TRIES, k), facts)
    return Case(point, partial(_tried, radius, sigma, k, TRIES))


def _on_tapes(n: int, radius: float, sigma: float, k: int) -> Case:
    law, formula = "replay" if k == 1 else "replay-set", theory.replay_set(n, radius, sigma, k)
    return Case(Point(law, n, k, formula, {"judged": 1, "radius": radius}), partial(_replayed, radius, sigma, k))


def _tried(radius: float, sigma: float, k: float, tries: int, draws: Draws) -> Tensor:
    """Centre the mean of k draws (at k = inf their expectation, 0); broken where one of the judge's draws lands in the ball."""
    mean = torch.zeros(()) if math.isinf(k) else draws.seen[:, : int(k)].mean(1, keepdim=True)
    return _inside(sigma * (draws.fresh[:, :tries] - mean), radius).any(1)


def _replayed(radius: float, sigma: float, k: int, draws: Draws) -> Tensor:
    """Centre the mean of k tapes, judged on the first of them: they are exchangeable, and a trial stays a yes or no."""
    return _inside(sigma * (draws.tape[:, 0] - draws.tape[:, :k].mean(1)), radius)


def _inside(offset: Tensor, radius: float) -> Tensor:
    return offset.square().sum(-1) <= radius**2


def budget_cases(n: int, sigma: float) -> list[Case]:
    """The ball under budgets eps: the image's distance from the ball's centre and the ball's radius are fixed."""
    place = _BUDGET_RADIUS, sigma, _BUDGET_DISTANCE
    facts = {"judged": 1.0, "radius": _BUDGET_RADIUS, "distance": _BUDGET_DISTANCE}
    cases = [Case(Point("clean", n, 0, theory.clean(n, *place), facts), partial(_moved, *place, 0.0))]
    for eps in _BUDGETS:
        ideal, replay = theory.budget_eot(n, *place, eps), theory.budget_replay(n, *place, eps)
        about = {**facts, "eps": eps}
        cases += [
            Case(Point("ideal eot, budget", n, math.inf, ideal, about), partial(_moved, *place, eps)),
            Case(Point("replay, budget", n, 1, replay, about), partial(_moved_on_tape, *place, eps)),
        ]
    return cases


def _moved(radius: float, sigma: float, distance: float, eps: float, draws: Draws) -> Tensor:
    """Go `eps` towards the centre, no further than it, and meet a fresh draw."""
    state = sigma * draws.fresh[:, 0]
    return _inside(state + max(distance - eps, 0) * _axis(state), radius)


def _moved_on_tape(radius: float, sigma: float, distance: float, eps: float, draws: Draws) -> Tensor:
    """Go `eps` towards the centre from where the tape puts the state, no further than it, and meet the same tape."""
    state = sigma * draws.tape[:, 0]
    state = state + distance * _axis(state)
    length = state.norm(dim=1, keepdim=True)
    return _inside(state - state * (eps / length).clamp(max=1), radius)


def _axis(like: Tensor) -> Tensor:
    axis = torch.zeros(like.shape[1])
    axis[0] = 1
    return axis


def half_space_cases(n: int, sigma: float) -> list[Case]:
    """A half-space: eps along its normal is the best move on every tape."""
    formula = theory.half_space(sigma, _HALF_DISTANCE, _HALF_EPS)
    short = _HALF_DISTANCE - _HALF_EPS
    facts = {"judged": 1.0, "distance": _HALF_DISTANCE, "eps": _HALF_EPS}
    return [
        Case(Point("half-space, fresh", n, 1, formula, facts), lambda draws: sigma * draws.fresh[:, 0, 0] >= short),
        Case(Point("half-space, replay", n, 1, formula, facts), lambda draws: sigma * draws.tape[:, 0, 0] >= short),
    ]


def phase_cases(n: int, sigma: float) -> list[Case]:
    """A ball that grows with the dimension, R^2 = rho n sigma^2."""
    cases = []
    for rho in _RHOS:
        radius = math.sqrt(rho * n) * sigma
        cases += [_centred(n, radius, sigma, k, {"radius": radius, "rho": rho}) for k in (*_PHASE_DRAWS, math.inf)]
    return cases


def simulate(cases: Sequence[Case], trials: int, k: int, seed: int) -> list[dict[str, object]]:
    """Rows for cases of one dimension; all cases see the same draws.

    Trial t is image t of the suite's noise, and one request holds all numbers of a trial: blocks of trials change nothing.
    """
    n = cases[0].point.n
    successes = np.zeros(len(cases), dtype=np.int64)
    for first in range(0, trials, _BLOCK):
        draws = _draws(range(first, min(first + _BLOCK, trials)), k, n, seed)
        successes += [int(case.broken(draws).sum()) for case in cases]
    return [case.point.row(int(count), trials) for case, count in zip(cases, successes, strict=True)]


def _draws(trials: range, k: int, n: int, seed: int) -> Draws:
    def normal(stream: Stream, count: int) -> Tensor:
        return Noise.of(seed, stream, trials).normal(f"theorem/{n}", (count, n))

    return Draws(normal(Stream.ATTACK, k), normal(Stream.TAPE, k), normal(Stream.EVAL, TRIES))


def ascents(params: TheoremParams, trials: int, seed: int) -> Iterator[dict[str, object]]:
    """Rows for constant-step ascent by the suite's own loop, on fresh draws and on a tape."""
    ball, n = Ball(params.radius, params.sigma), _ASCENT_DIMENSION
    for k, step in _ASCENTS:
        formula = theory.descent(n, ball.radius, ball.sigma, k, step)
        yield _ascent("ascent", ball, n, Law("eot", k), step, formula, trials, seed)
    yield _ascent("ascent, replay", ball, n, Law("replay"), _ASCENTS[0][1], 1.0, trials, seed)


def _ascent(name: str, ball: Ball, n: int, law: Law, step: float, formula: float, trials: int, seed: int) -> dict[str, object]:
    point = Point(name, n, law.k, formula, {"judged": 1, "radius": ball.radius, "step": step})
    return point.row(int(attack(ball, n, law, step, trials, seed).sum()), trials)


# What is shown ---------------------------------------------------------------------------------------------------------


def success_table(points: pd.DataFrame) -> pd.DataFrame:
    """Simulated success of one try by dimension (rows) and law (columns), on the ball of fixed radius."""
    here = points[points["law"].isin(_SINGLE) & points["rho"].isna()]
    here = here.assign(law=[_name(law, k) for law, k in zip(here["law"], here["k"], strict=True)])
    return here.pivot_table(index="n", columns="law", values="simulated", sort=False).reset_index().rename_axis(columns=None)


def _name(law: str, k: float) -> str:
    return law if law in ("ideal eot", "replay") else f"{law}, k={k:g}"


def law_table(points: pd.DataFrame) -> pd.DataFrame:
    """By law: how many points, how many held, largest |z|, largest |simulated - formula|."""
    off = points.assign(z=points["z"].abs(), difference=(points["simulated"] - points["formula"]).abs())
    grouped = off.groupby("law", sort=False)
    return grouped.agg(
        points=("held", "size"), held=("held", "sum"), largest_z=("z", "max"), largest_difference=("difference", "max")
    ).reset_index()


def sentence(points: pd.DataFrame, params: TheoremParams) -> str:
    """How many points held, and what fresh noise hides in the middle dimension."""
    n = sorted(params.dimensions)[len(params.dimensions) // 2]
    place = n, params.radius, params.sigma
    return (
        f"{int(points['held'].sum())} of {len(points)} simulated success rates agree with their formulas, "
        f"the largest |z| is {points['z'].abs().max():.2f}; behind noise in {n} dimensions an attack that averages one draw "
        f"reaches a ball of {params.radius / params.sigma:g} standard deviations with probability {theory.eot(*place, 1):.3f}, "
        f"ideal EOT with {theory.ideal(*place):.3f}, replay with {theory.replay_set(*place, 1):g}."
    )


def success_figure(points: pd.DataFrame, params: TheoremParams) -> Figure:
    """Success against the dimension: formulas as lines, simulation as points with two standard errors."""
    figure, axes = plots.axes(
        f"Replay always reaches a ball of {params.radius / params.sigma:g} standard deviations; "
        "on fresh noise every attack fails as the dimension grows",
        "dimension n",
        _SUCCESS,
    )
    grid = np.arange(1, max(params.dimensions) + 1)
    for (label, law, k, formula), colour in zip(_curves(params), cycle(plots.COLOURS), strict=False):
        axes.plot(grid, [formula(int(n), params.radius, params.sigma) for n in grid], color=colour, label=label)
        _dots(axes, points[(points["law"] == law) & (points["k"] == k) & points["rho"].isna()], "n", colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(params.dimensions, [str(n) for n in params.dimensions])
    axes.minorticks_off()
    plots.legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


Formula = Callable[[int, float, float], float]
"""(n, radius, sigma) to a probability."""


def _curves(params: TheoremParams) -> Iterator[tuple[str, str, float, Formula]]:
    """(label, law, k, formula) of each curve, from the top down."""
    most = max(params.draws)
    yield "replay", "replay", 1, partial(theory.replay_set, k=1)
    yield f"EOT, k = {most}, ten tries", _WORST, most, partial(theory.worst_of, tries=TRIES, k=most)
    if most > 1:
        yield f"replay set, k = {most}", "replay-set", most, partial(theory.replay_set, k=most)
    yield "ideal EOT, the bound", "ideal eot", math.inf, theory.ideal
    for k in sorted(params.draws, reverse=True):
        label, law = ("no EOT, k = 1", "fresh") if k == 1 else (f"EOT, k = {k}", "eot")
        yield label, law, k, partial(theory.eot, k=k)


def phase_figure(points: pd.DataFrame) -> Figure:
    """Success against rho, R^2 = rho n sigma^2: in high dimension a step at 1 + 1/k."""
    figure, both = plots.panels(
        "Where the ball grows with the dimension, averaging k draws fails below rho = 1 + 1/k and succeeds above",
        [("rho = R² / (n sigma²)", _SUCCESS, f"n = {n}") for n in _PHASE_DIMENSIONS],
    )
    grid = np.linspace(min(_RHOS), max(_RHOS), 281)
    for axes, n in zip(both, _PHASE_DIMENSIONS, strict=True):
        for k, colour in zip((math.inf, *reversed(_PHASE_DRAWS)), plots.COLOURS, strict=False):
            label = "ideal EOT" if math.isinf(k) else f"k = {k}"
            axes.plot(grid, [theory.phase(n, float(rho), k) for rho in grid], color=colour, label=label)
            axes.axvline(1 + 1 / k, color=colour, linestyle=":", linewidth=1)
            _dots(axes, points[points["rho"].notna() & (points["n"] == n) & (points["k"] == k)], "rho", colour)
    plots.legend(both[0], loc="lower right")
    return figure


def budget_figure(points: pd.DataFrame, sigma: float) -> Figure:
    """Success against the budget eps, for replay and ideal EOT."""
    figure, both = plots.panels(
        "Under a budget replay is not certain either, but reaches where the best attack on fresh noise does not",
        [(f"budget eps (noise: sigma = {sigma:g})", _SUCCESS, f"n = {n}") for n in _BUDGET_DIMENSIONS],
    )
    for axes, n in zip(both, _BUDGET_DIMENSIONS, strict=True):
        _budget_panel(axes, points[points["n"] == n], n, sigma)
    plots.legend(both[1], loc="upper left")
    return figure


def _budget_panel(axes: Axes, points: pd.DataFrame, n: int, sigma: float) -> None:
    place = n, _BUDGET_RADIUS, sigma, _BUDGET_DISTANCE
    laws = {"replay, budget": ("replay", theory.budget_replay), "ideal eot, budget": ("ideal EOT, the bound", theory.budget_eot)}
    grid = np.linspace(0, max(_BUDGETS), 121)
    for (law, (label, formula)), colour in zip(laws.items(), plots.COLOURS, strict=False):
        axes.plot(grid, [formula(*place, float(eps)) for eps in grid], color=colour, label=label)
        _dots(axes, points[points["law"] == law], "eps", colour)
    axes.axhline(theory.clean(*place), color=plots.COLOURS[-1], linestyle=":", label="no attack")
    axes.set_ylim(-0.03, 1.03)


def _dots(axes: Axes, points: pd.DataFrame, over: str, colour: str) -> None:
    """Simulated shares with bars of two standard errors."""
    bars = 2 * points["standard_error"].to_numpy()
    axes.errorbar(points[over].to_numpy(), points["simulated"].to_numpy(), bars, fmt="o", markersize=5, capsize=3, color=colour)
