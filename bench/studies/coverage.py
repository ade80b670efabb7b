"""The study `coverage`: how often do the suite's intervals hold the number that they are about?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from bench.results.arrays import Bools
from bench.results.estimate import Estimate
from bench.spec import Integers, Params
from bench.studies import plots
from bench.studies.populations import Case, cases
from bench.studies.study import Study, StudyResult, StudySetting

LOW, HIGH, LOWEST = 0.93, 0.99, 0.90
"""What coverage must be: between the first two on average, and nowhere below the last."""

DOUBTFUL, PATIENCE = 0.93, 10
"""A case that covers less is drawn so many times as often, so that no chance decides it."""

_PLACE = ("interval", "n", "draws", "parts")


class CoverageParams(Params):
    trials: int = Field(400, ge=20, le=1_000_000, description="samples a case")
    images: Integers = Field(
        (50, 100, 1000), min_length=1, description="images of a sample, joined by +"
    )


class Coverage(Study[CoverageParams]):
    """How often does each interval that the suite prints hold the true number?

    Samples are drawn from populations whose true shares are known, from 2 to 98 %, and the suite's
    own functions make the intervals. An interval holds where it covers 93 to 99 % on average over
    true shares and populations, and 90 % at least in each of them, up to two and three standard
    errors of the simulation. Exit code 1 where one does not.
    """

    Params = CoverageParams
    uses = frozenset({"seed"})

    def run(self, setting: StudySetting) -> StudyResult:
        cells = pd.DataFrame(list(self._rows(setting)))
        table = summary(cells)
        return StudyResult(
            tables={
                "intervals": by_interval(table),
                "coverage": table,
                "worst-case": worst_case_table(cells),
                "cells": cells,
            },
            figures={"coverage": coverage_figure(table), "worst-case": worst_case_figure(cells)},
            sentence=sentence(table, cells),
            held=bool(table["held"].all()),
            scale=f"{self.params.trials} samples a case, half as many from 1,000 images on, "
            f"{PATIENCE} times as many where it covers less than {100 * DOUBTFUL:g} %",
        )

    def _rows(self, setting: StudySetting) -> Iterator[dict[str, object]]:
        number = 0
        for n in self.params.images:
            trials = self.params.trials // (2 if n >= 1000 else 1)
            begun: set[str] = set()
            for case in cases(n):
                if case.interval not in begun:
                    begun.add(case.interval)
                    setting.progress(f"{case.interval}, {n} images")
                yield simulated(case, trials, [setting.seed, number])
                number += 1


def simulated(case: Case, trials: int, key: Sequence[int]) -> dict[str, object]:
    """A case with its coverage over so many samples, and what its value is off on average.

    A `DOUBTFUL` one is drawn anew, `PATIENCE` times as often: the lowest of many cases is low by
    chance as well, and what chose it must not judge it.
    """
    random = np.random.Generator(np.random.Philox(list(key)))
    printed = _printed(case, trials, random)
    if _held(case, printed).mean() < DOUBTFUL:
        printed = _printed(case, PATIENCE * trials, random)
    held = _held(case, printed)
    values = np.array([one.value for one in printed])
    places = {one.name: getattr(case, one.name) for one in fields(case) if one.name != "sample"}
    return {
        **places,
        "samples": len(printed),
        "coverage": float(held.mean()),
        "bias": float(values.mean() - case.truth),
        "width": float(np.mean([one.high - one.low for one in printed])),
    }


def _printed(case: Case, trials: int, random: np.random.Generator) -> list[Estimate]:
    """The intervals of so many samples; a sample without one is left out."""
    return [one for one in (case.sample(random) for _ in range(trials)) if one is not None]


def _held(case: Case, printed: Sequence[Estimate]) -> Bools:
    return np.array([one.low <= case.truth <= one.high for one in printed])


# What is shown ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """Coverage of one interval in one place over its cases, and whether it is what it must be."""

    average: float
    lowest: float
    held: bool

    @classmethod
    def of(cls, cells: pd.DataFrame) -> _Judged:
        coverage, samples = cells["coverage"].to_numpy(), cells["samples"].to_numpy()
        average, lowest = float(coverage.mean()), float(coverage.min())
        # By how many standard errors of the simulation an average is inside, and the lowest one of
        # many is: it is low by chance as well.
        errors = [2 * np.sqrt(x * (1 - x) / samples.sum()) for x in (LOW, HIGH)]
        inside = LOW - errors[0] <= average <= HIGH + errors[1]
        loose = 3 * np.sqrt(LOWEST * (1 - LOWEST) / samples[coverage.argmin()])
        return cls(average, lowest, bool(inside and lowest >= LOWEST - loose))


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """A row for each interval, number of images, of draws, and of classes, attacks or builds."""
    rows = []
    for place, group in cells.groupby(list(_PLACE), sort=False):
        judged = _Judged.of(group)
        lowest = group.sort_values("coverage").iloc[0]
        bias = group["bias"].to_numpy()
        rows.append(
            {
                **dict(zip(_PLACE, place, strict=True)),
                "cases": len(group),
                "average": judged.average,
                "lowest": judged.lowest,
                "lowest_at": f"{lowest['population']}, {lowest['share']:g}",
                "largest_bias": float(bias[np.abs(bias).argmax()]),
                "held": judged.held,
            }
        )
    return pd.DataFrame(rows)


def by_interval(table: pd.DataFrame) -> pd.DataFrame:
    """A row an interval, in percent: the lowest and the highest average of its rows in `summary`,
    and the lowest single coverage.
    """
    rows = []
    for name, group in table.groupby("interval", sort=False):
        lowest, averages = group.sort_values("lowest").iloc[0], 100 * group["average"]
        rows.append(
            {
                "interval": name,
                "cases": int(group["cases"].sum()),
                "averages": f"{averages.min():.1f}-{averages.max():.1f}",
                "lowest": f"{100 * lowest['lowest']:.1f}",
                "at": f"{lowest['n']} images, {lowest['lowest_at']}",
                "held": "yes" if group["held"].all() else "no",
            }
        )
    return pd.DataFrame(rows)


def worst_case_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Of the worst case over attacks: by how much the value is off what its attacker leaves, and
    how far that lies above the mean of each image's lowest chance, in points, over true shares.
    """
    here = cells[cells["interval"] == "worst case over attacks"]
    here = here.assign(
        bias=100 * here["bias"].abs(), above_lowest=100 * (here["truth"] - here["limit"])
    )
    grouped = here.groupby(["parts", "population"], sort=False)
    return (
        grouped.agg(
            largest_bias=("bias", "max"),
            above_lowest=("above_lowest", "mean"),
            most_above_lowest=("above_lowest", "max"),
            coverage=("coverage", "mean"),
            lowest_coverage=("coverage", "min"),
        )
        .reset_index()
        .rename(columns={"parts": "attacks"})
    )


def sentence(table: pd.DataFrame, cells: pd.DataFrame) -> str:
    """How many hold, the lowest coverage, and the worst case's bias."""
    worst = cells[cells["interval"] == "worst case over attacks"]
    low = table.sort_values("lowest").iloc[0]
    pooled = worst.groupby(["parts", "population", "share"])["bias"].mean().abs().max()
    return (
        f"{int(table['held'].sum())} of {len(table)} intervals cover as they must; averages over "
        f"true shares lie between {100 * table['average'].min():.1f} and "
        f"{100 * table['average'].max():.1f} %, the lowest single coverage is "
        f"{100 * low['lowest']:.1f} % ({low['interval']}, {low['n']} images, {low['lowest_at']}); "
        f"the worst case over attacks is off what its attacker leaves by {100 * pooled:.2f} points "
        "at most."
    )


def coverage_figure(table: pd.DataFrame) -> Figure:
    """For each interval the range of its coverage over all cases, with the average, by number of
    images.
    """
    figure, axes = plots.axes(
        "Coverage of nominal 95 % intervals: average over true shares and populations (dot), and "
        "the lowest single one (bar's end)",
        "coverage in percent (shaded: what the average must be)",
        "",
    )
    names = list(dict.fromkeys(table["interval"]))
    axes.axvspan(100 * LOW, 100 * HIGH, color="#e8e8e8", zorder=0)
    axes.axvline(100 * LOWEST, color=plots.COLOURS[-1], linestyle=":")
    axes.axvline(95, color=plots.COLOURS[-1], linewidth=1)
    sizes = sorted(set(table["n"]))
    for place, (n, colour) in enumerate(zip(sizes, plots.COLOURS, strict=False)):
        rows = table[table["n"] == n].groupby("interval", sort=False)
        at = [
            names.index(str(name)) + 0.22 * (place - (len(sizes) - 1) / 2) for name in rows.groups
        ]
        average, lowest = 100 * rows["average"].mean(), 100 * rows["lowest"].min()
        axes.hlines(at, lowest, average, color=colour, linewidth=2)
        axes.plot(average, at, "o", color=colour, label=f"{n} images")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    plots.legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def worst_case_figure(cells: pd.DataFrame) -> Figure:
    """Against the number of attacks: what the estimate is off its attacker's number, and how far
    that lies above the lowest chances.
    """
    figure, both = plots.panels(
        "The worst case over attacks is unbiased for an attacker who tries each attack on 19 "
        "draws; one who knew every chance would leave less",
        [
            ("attacks", "points", "value minus what its attacker leaves"),
            ("attacks", "points", "that above the lowest chances"),
        ],
    )
    here = cells[cells["interval"] == "worst case over attacks"]
    for colour, (population, group) in zip(
        plots.COLOURS, here.groupby("population", sort=False), strict=False
    ):
        by_attacks = group.groupby("parts")
        above = by_attacks["truth"].mean() - by_attacks["limit"].mean()
        _line(both[0], 100 * by_attacks["bias"].mean(), colour, str(population))
        _line(both[1], 100 * above, colour, str(population))
    both[0].set_ylim(-0.6, 0.6)
    plots.legend(both[0], loc="lower left")
    return figure


def _line(axes: Axes, values: pd.Series[float], colour: str, label: str) -> None:
    axes.plot(values.index, values.to_numpy(), "o-", color=colour, label=label)
    axes.set_xticks(list(values.index))
