"""The study `ablation`: what does each component of a defense do for it?"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from bench.report.compare import BuildScores, by_build, comparison, with_interval
from bench.spec import Specs
from bench.studies import plots
from bench.studies.builds import BuildsParams, BuildsStudy
from bench.studies.study import StudyResult
from bench.studies.synthetic import short_names

_BASE = "images=500,iterations=150,synthesis_batch=50,epochs=10,batch=50"
_CHANGES = (
    "group=2",
    "group=1",
    "group=2,coefficients=fixed",
    "group=2,checkpoint=best",
    "group=2,objective=(datafreeshield:clean=0)",
    "group=2,objective=(datafreeshield:adv_teacher=0)",
    "group=2,objective=(datafreeshield:smooth=0)",
    "group=2,objective=trades",
    "group=2,objective=mart",
    "group=2,objective=pgd-at",
    "group=2,objective=ard",
    "group=2,objective=rslad",
)


class AblationParams(BuildsParams):
    defenses: Specs = Field(
        tuple(f"datafreeshield:{_BASE},{change}" for change in _CHANGES),
        min_length=2,
        description="defenses joined by +, in parentheses where they hold commas; each is compared "
        "with the first",
    )


class Ablation(BuildsStudy[AblationParams]):
    """What does each component of a defense do for it? Variants against the first one, over builds,
    on the same images.

    Means over builds and images with intervals that count both, and the paired difference of robust
    accuracy to the first defense; by build the images lost and won, and McNemar's exact p. A build
    is another seed of everything that the defense draws.
    """

    Params = AblationParams

    def specs(self) -> tuple[str, ...]:
        return self.params.defenses

    def answer(self, scores: list[BuildScores], scale: str) -> StudyResult:
        table = comparison(scores)
        return StudyResult(
            tables={"ablation": table, "builds": by_build(scores)},
            figures={"ablation": ablation_figure(table, scores)},
            sentence=sentence(table),
            scale=scale,
        )


def sentence(table: pd.DataFrame) -> str:
    """Robust accuracy of the first, and what the others add or take."""
    names = short_names(list(table["defense"]))
    first, *others = table.to_dict("records")
    differences = [f"{names[row['defense']]}: {with_interval(row, 'difference')}" for row in others]
    return (
        f"{names[first['defense']]} has {with_interval(first, 'robust')} % robust accuracy; "
        f"differences to it in points: {'; '.join(differences)}."
    )


def ablation_figure(table: pd.DataFrame, builds: list[BuildScores]) -> Figure:
    """Accuracies with their intervals, a dot a build; and the differences to the first defense."""
    figure, (left, right) = plots.panels(
        "Accuracy of each variant (95 % intervals over builds and images; dots: builds)",
        [
            ("accuracy", "", "clean (orange), under attack (blue)"),
            ("difference under attack", "", "to the first"),
        ],
    )
    rows, names = table.to_dict("records"), short_names(list(table["defense"]))
    for place, (row, defense) in enumerate(zip(rows, builds, strict=True)):
        for name, scores, colour in (
            ("clean", defense.clean, plots.COLOURS[1]),
            ("robust", defense.robust, plots.COLOURS[0]),
        ):
            left.plot(scores.mean(axis=1), [place] * len(scores), ".", color=colour, alpha=0.4)
            _bar(left, row, name, place, colour)
        if place:
            _bar(right, row, "difference", place, plots.COLOURS[0])
    right.axvline(0, color=plots.COLOURS[-1], linestyle=":")
    for axes in (left, right):
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [plots.wrapped(names[row["defense"]]) for row in rows])
    right.tick_params(labelleft=False)
    return figure


def _bar(axes: Axes, row: dict[Any, Any], name: str, place: int, colour: str) -> None:
    low, high = row[name] - row[f"{name}_low"], row[f"{name}_high"] - row[name]
    axes.errorbar(
        row[name], place, xerr=[[max(low, 0)], [max(high, 0)]], fmt="o", color=colour, capsize=3
    )
