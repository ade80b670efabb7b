"""Pictures of records: robust accuracy over eps, or clean against robust accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.errors import BadInput
from bench.report.boards.make import boards
from bench.report.curve import eps_of
from bench.report.escape import terminal
from bench.report.words import attack_label, defense_label
from bench.results.estimate import Estimate
from bench.results.record import Record
from bench.studies.plots import COLOURS, axes, legend, png


@dataclass(frozen=True)
class Picture:
    """A figure that a notebook shows; `figure.savefig` writes it.

    Attributes:
        figure: of matplotlib, made without pyplot.
    """

    figure: Figure

    def _repr_png_(self) -> bytes:
        return png(self.figure)


def picture(records: Sequence[Record]) -> Picture:
    """Robust accuracy over eps, a line a defense and attack, where the records are of several eps;
    else clean against robust accuracy, a point a defense. Bars are 95 % intervals.

    Raises:
        BadInput: where there is no record, or several setups that differ in more than eps.
    """
    if not records:
        raise BadInput("there is no record to draw: every evaluation failed")
    where = {(one.identity["dataset"]["sha256"], one.title["classifier"]) for one in records}
    if len(where) > 1:
        raise BadInput("the records are of several data sets or classifiers: draw those of one")
    return Picture(_curve(records) if len(set(map(eps_of, records))) > 1 else _scatter(records))


def _curve(records: Sequence[Record]) -> Figure:
    lines: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=eps_of):
        lines[f"{defense_label(record)}, {attack_label(record)}"].append(record)
    figure, panel = axes("Robust accuracy over eps", "eps", "accuracy in %")
    for (name, line), colour in zip(lines.items(), _colours(len(lines)), strict=True):
        robust = [record.metrics.adversarial.mean for record in line]
        _points(panel, list(map(eps_of, line)), robust, name, colour)
    return _finished(figure, panel)


def _scatter(records: Sequence[Record]) -> Figure:
    (board,) = boards(records)
    figure, panel = axes(str(board.setup), "clean accuracy in %", "robust accuracy in %")
    for row, colour in zip(board.rows, _colours(len(board.rows)), strict=True):
        _points(panel, [100 * row.clean.value], [row.robust], row.defense, colour)
    panel.set_xlim(-2, 102)
    return _finished(figure, panel)


def _points(
    panel: Axes, at: Sequence[float], values: Sequence[Estimate], name: str, colour: str
) -> None:
    heights = np.array([100 * one.value for one in values])
    bars = [
        heights - [100 * one.low for one in values],
        [100 * one.high for one in values] - heights,
    ]
    label = terminal(name).replace("$", r"\$")[:60]
    panel.errorbar(at, heights, yerr=bars, marker="o", capsize=3, color=colour, label=label)


def _colours(number: int) -> list[str]:
    return [COLOURS[at % len(COLOURS)] for at in range(number)]


def _finished(figure: Figure, panel: Axes) -> Figure:
    panel.set_ylim(-2, 102)
    legend(panel)
    return figure
