"""The study `quantity`: how does a defense's accuracy grow with one of its numbers, such as how
many images it trains on?
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field, field_validator

from bench.report.compare import BuildScores, by_build, comparison, with_interval
from bench.spec import Numbers, Spec, parse, show_number
from bench.studies import plots
from bench.studies.builds import BuildsParams, BuildsStudy, SpecText
from bench.studies.study import StudyResult


class QuantityParams(BuildsParams):
    defense: SpecText = Field(
        "datafreeshield:iterations=150,synthesis_batch=50,epochs=10,batch=50,group=2",
        description="defense, in parentheses where it holds commas",
    )
    field: str = Field("images", min_length=1, description="its parameter that changes")
    values: Numbers = Field(
        (125, 250, 500, 1000), min_length=2, description="values of it, rising, joined by +"
    )

    @field_validator("values")
    @classmethod
    def _rise(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(a >= b for a, b in pairwise(values)):
            raise ValueError("give each value once, the smallest first")
        return values


class Quantity(BuildsStudy[QuantityParams]):
    """How does a defense's accuracy grow with one of its numbers, such as how many images it trains
    on?

    The same defense with one parameter set to each value, over builds, on the same images; each is
    compared with the first.
    """

    Params = QuantityParams

    def specs(self) -> tuple[str, ...]:
        params, spec = self.params, parse(self.params.defense)
        return tuple(
            str(
                Spec(spec.name, spec.positional, {**spec.options, params.field: show_number(value)})
            )
            for value in params.values
        )

    def answer(self, scores: list[BuildScores], scale: str) -> StudyResult:
        field, table = self.params.field, comparison(scores)
        table.insert(0, field, self.params.values)
        return StudyResult(
            tables={"quantity": table.drop(columns="defense"), "builds": by_build(scores)},
            figures={"quantity": quantity_figure(table, field, scores)},
            sentence=sentence(table, field),
            scale=scale,
        )


def sentence(table: pd.DataFrame, field: str) -> str:
    """Robust accuracy at each value, and what the last adds to the first."""
    rows = table.to_dict("records")
    accuracies = ", ".join(
        f"{with_interval(row, 'robust')} at {show_number(row[field])}" for row in rows
    )
    return (
        f"Robust accuracy in percent by {field}: {accuracies}; the last minus the first "
        f"{with_interval(rows[-1], 'difference')} points."
    )


def quantity_figure(table: pd.DataFrame, field: str, builds: list[BuildScores]) -> Figure:
    """Clean and robust accuracy against the value, a dot a build."""
    figure, axes = plots.axes(
        f"Accuracy by {field} (95 % intervals over builds and images; dots: builds)",
        field,
        "accuracy",
    )
    at = table[field].to_numpy(dtype=float)
    for name, label, colour in (
        ("clean", "clean", plots.COLOURS[1]),
        ("robust", "under attack", plots.COLOURS[0]),
    ):
        value, low, high = (table[key].to_numpy() for key in (name, f"{name}_low", f"{name}_high"))
        axes.errorbar(
            at,
            value,
            np.maximum([value - low, high - value], 0),
            fmt="o-",
            color=colour,
            capsize=3,
            label=label,
        )
        for x, scores in zip(at, builds, strict=True):
            dots = getattr(scores, name).mean(axis=1)
            axes.plot([x] * len(dots), dots, ".", color=colour, alpha=0.4)
    if at.min() > 0:
        axes.set_xscale("log", base=2)
    axes.set_xticks(at, [show_number(value) for value in at])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)
    plots.legend(axes, loc="best")
    return figure
