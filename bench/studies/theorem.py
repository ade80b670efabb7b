"""The study `theorem`: is the gap between fresh noise, EOT and replay what the formulas of
`bench.studies.theory` say?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from bench.spec import Integers, Number, Params
from bench.studies import plots, simulation, theory
from bench.studies.realised import Ball
from bench.studies.study import Study, StudyResult, StudySetting

_SINGLE = ("fresh", "eot", "ideal eot", "replay", "replay-set")
_SUCCESS = "success: formula (line), simulation (± 2 s.e.)"
_COLUMNS = (
    "randomness",
    "n",
    "k",
    *simulation.FACTS,
    "simulated",
    "trials",
    "formula",
    "standard_error",
    "z",
    "held",
)


class TheoremParams(Params):
    trials: int = Field(
        20_000,
        ge=100,
        le=10_000_000,
        description="attacks a point; a quarter for ascent, a tenth for the phase",
    )
    radius: Number = Field(3.0, gt=0, description="radius of the adversarial ball")
    sigma: Number = Field(1.0, gt=0, description="standard deviation of the noise")
    dimensions: Integers = Field(
        (1, 2, 5, 8, 12, 16, 24, 32, 64), min_length=1, description="dimensions n, joined by +"
    )
    draws: Integers = Field(
        (1, 2, 5, 20), min_length=1, description="draws k that an attack averages, joined by +"
    )


class Theorem(Study[TheoremParams]):
    """Success of fresh, EOT and replay attacks behind Gaussian noise: simulation against closed
    formulas.

    An attack moves a state into a ball or a half-space through Gaussian noise;
    `bench.studies.theory` says how often it succeeds. Each attack is simulated with the suite's own
    noise, and constant-step ascent by the suite's own loop on a Victim. A point holds where
    simulation and formula differ by at most four standard errors and 0.001. Exit code 1 where one
    does not.
    """

    Params = TheoremParams
    uses = frozenset({"seed"})

    def run(self, setting: StudySetting) -> StudyResult:
        points = pd.DataFrame(list(self._rows(setting)), columns=list(_COLUMNS))
        return StudyResult(
            tables={
                "success": success_table(points),
                "models": randomness_table(points),
                "points": points,
            },
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
        params, seed, simulate = self.params, setting.seed, simulation.simulate
        for n in params.dimensions:
            setting.progress(f"ball, n = {n}")
            cases = simulation.ball_cases(n, params.radius, params.sigma, params.draws)
            yield from simulate(cases, params.trials, max(params.draws), seed)
        setting.progress("finite budgets and half-spaces")
        for n in simulation.BUDGET_DIMENSIONS:
            cases = [
                *simulation.budget_cases(n, params.sigma),
                *simulation.half_space_cases(n, params.sigma),
            ]
            yield from simulate(cases, params.trials, 1, seed)
        for n in simulation.PHASE_DIMENSIONS:
            setting.progress(f"radius growing with the dimension, n = {n}")
            yield from simulate(
                simulation.phase_cases(n, params.sigma),
                params.trials // 10,
                max(simulation.PHASE_DRAWS),
                seed,
            )
        setting.progress("gradient ascent")
        yield from simulation.ascents(Ball(params.radius, params.sigma), params.trials // 4, seed)


# What is shown ------------------------------------------------------------------------------------


def success_table(points: pd.DataFrame) -> pd.DataFrame:
    """Simulated success of one try by dimension (rows) and randomness model (columns), on the ball
    of fixed radius.
    """
    here = points[points["randomness"].isin(_SINGLE) & points["rho"].isna()]
    here = here.assign(
        randomness=[
            _name(randomness, k)
            for randomness, k in zip(here["randomness"], here["k"], strict=True)
        ]
    )
    return (
        here.pivot_table(index="n", columns="randomness", values="simulated", sort=False)
        .reset_index()
        .rename_axis(columns=None)
    )


def _name(randomness: str, k: float) -> str:
    return randomness if randomness in ("ideal eot", "replay") else f"{randomness}, k={k:g}"


def randomness_table(points: pd.DataFrame) -> pd.DataFrame:
    """By randomness model: how many points, how many held, largest |z|, largest |simulated -
    formula|.
    """
    off = points.assign(
        z=points["z"].abs(), difference=(points["simulated"] - points["formula"]).abs()
    )
    grouped = off.groupby("randomness", sort=False)
    return grouped.agg(
        points=("held", "size"),
        held=("held", "sum"),
        largest_z=("z", "max"),
        largest_difference=("difference", "max"),
    ).reset_index()


def sentence(points: pd.DataFrame, params: TheoremParams) -> str:
    """How many points held, and what fresh noise hides in the middle dimension."""
    n = sorted(params.dimensions)[len(params.dimensions) // 2]
    place = n, params.radius, params.sigma
    return (
        f"{int(points['held'].sum())} of {len(points)} simulated success rates agree with their "
        f"formulas, the largest |z| of the {points['z'].notna().sum()} that are not next to 0 or 1 "
        f"is {points['z'].abs().max():.2f}; behind noise in {n} dimensions an attack that averages "
        f"one draw reaches a ball of {params.radius / params.sigma:g} standard deviations with "
        f"probability {theory.eot(*place, 1):.3f}, ideal EOT with {theory.ideal(*place):.3f}, "
        f"replay with {theory.replay_set(*place, 1):g}."
    )


def success_figure(points: pd.DataFrame, params: TheoremParams) -> Figure:
    """Success against the dimension: formulas as lines, simulation as points with two standard
    errors.
    """
    figure, axes = plots.axes(
        f"Without a budget replay always reaches a ball of {params.radius / params.sigma:g} "
        "standard deviations; on fresh noise every attack fails as the dimension grows",
        "dimension n",
        _SUCCESS,
    )
    grid = np.arange(1, max(params.dimensions) + 1)
    for (label, randomness, k, formula), colour in zip(
        _curves(params), cycle(plots.COLOURS), strict=False
    ):
        axes.plot(
            grid,
            [formula(int(n), params.radius, params.sigma) for n in grid],
            color=colour,
            label=label,
        )
        _dots(
            axes,
            points[
                (points["randomness"] == randomness) & (points["k"] == k) & points["rho"].isna()
            ],
            "n",
            colour,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(params.dimensions, [str(n) for n in params.dimensions])
    axes.minorticks_off()
    plots.legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


Formula = Callable[[int, float, float], float]
"""(n, radius, sigma) to a probability."""


def _curves(params: TheoremParams) -> Iterator[tuple[str, str, float, Formula]]:
    """(label, randomness model, k, formula) of each curve, from the top down."""
    most = max(params.draws)
    yield "replay", "replay", 1, partial(theory.replay_set, k=1)
    yield (
        f"EOT, k = {most}, ten tries",
        simulation.WORST,
        most,
        partial(theory.worst_of, tries=simulation.TRIES, k=most),
    )
    if most > 1:
        yield f"replay set, k = {most}", "replay-set", most, partial(theory.replay_set, k=most)
    yield "ideal EOT, the bound", "ideal eot", math.inf, theory.ideal
    for k in sorted(params.draws, reverse=True):
        label, randomness = ("no EOT, k = 1", "fresh") if k == 1 else (f"EOT, k = {k}", "eot")
        yield label, randomness, k, partial(theory.eot, k=k)


def phase_figure(points: pd.DataFrame) -> Figure:
    """Success against rho, R^2 = rho n sigma^2: in high dimension a step at 1 + 1/k."""
    figure, both = plots.panels(
        "Where the ball grows with the dimension, averaging k draws fails below rho = 1 + 1/k and "
        "succeeds above",
        [("rho = R² / (n sigma²)", _SUCCESS, f"n = {n}") for n in simulation.PHASE_DIMENSIONS],
    )
    grid = np.linspace(min(simulation.RHOS), max(simulation.RHOS), 281)
    for axes, n in zip(both, simulation.PHASE_DIMENSIONS, strict=True):
        for k, colour in zip(
            (math.inf, *reversed(simulation.PHASE_DRAWS)), plots.COLOURS, strict=False
        ):
            label = "ideal EOT" if math.isinf(k) else f"k = {k}"
            axes.plot(
                grid, [theory.phase(n, float(rho), k) for rho in grid], color=colour, label=label
            )
            axes.axvline(1 + 1 / k, color=colour, linestyle=":", linewidth=1)
            _dots(
                axes,
                points[points["rho"].notna() & (points["n"] == n) & (points["k"] == k)],
                "rho",
                colour,
            )
    plots.legend(both[0], loc="lower right")
    return figure


def budget_figure(points: pd.DataFrame, sigma: float) -> Figure:
    """Success against the budget eps, for replay and ideal EOT."""
    figure, both = plots.panels(
        "Under a budget replay is not certain either, but reaches where the best attack on fresh "
        "noise does not",
        [
            (f"budget eps (noise: sigma = {sigma:g})", _SUCCESS, f"n = {n}")
            for n in simulation.BUDGET_DIMENSIONS
        ],
    )
    for axes, n in zip(both, simulation.BUDGET_DIMENSIONS, strict=True):
        _budget_panel(axes, points[points["n"] == n], n, sigma)
    plots.legend(both[1], loc="upper left")
    return figure


def _budget_panel(axes: Axes, points: pd.DataFrame, n: int, sigma: float) -> None:
    place = n, simulation.BUDGET_RADIUS, sigma, simulation.BUDGET_DISTANCE
    curves = {
        "replay, budget": ("replay", theory.budget_replay),
        "ideal eot, budget": ("ideal EOT, the bound", theory.budget_eot),
    }
    grid = np.linspace(0, max(simulation.BUDGETS), 121)
    for (randomness, (label, formula)), colour in zip(curves.items(), plots.COLOURS, strict=False):
        axes.plot(grid, [formula(*place, float(eps)) for eps in grid], color=colour, label=label)
        _dots(axes, points[points["randomness"] == randomness], "eps", colour)
    axes.axhline(theory.clean(*place), color=plots.COLOURS[-1], linestyle=":", label="no attack")
    axes.set_ylim(-0.03, 1.03)


def _dots(axes: Axes, points: pd.DataFrame, over: str, colour: str) -> None:
    """Simulated shares with bars of two standard errors."""
    bars = 2 * points["standard_error"].to_numpy()
    axes.errorbar(
        points[over].to_numpy(),
        points["simulated"].to_numpy(),
        bars,
        fmt="o",
        markersize=5,
        capsize=3,
        color=colour,
    )
