"""One look for all figures: made as objects, without pyplot and its global state, readable at 900
pixels.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
"""Distinct for readers who confuse red and green (Okabe and Ito 2008), with a grey for what is only
context.
"""

_SMALL, _TEXT, _TITLE = 12, 13, 14
_DOTS_PER_INCH = 120
_LINE = 84


def axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes.

    Args:
        title: what the figure shows.
        xlabel, ylabel: quantity and unit.
    """
    figure, (only,) = panels(title, [(xlabel, ylabel, "")])
    return figure, only


def panels(title: str, labels: Sequence[tuple[str, str, str]]) -> tuple[Figure, list[Axes]]:
    """An empty figure with axes side by side; `labels` has (xlabel, ylabel, what it shows) for each
    of them.
    """
    figure = Figure(figsize=(9, 5.4), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, _LINE), fontsize=_TITLE, x=0.01, ha="left")
    axes = list(figure.subplots(1, len(labels), squeeze=False)[0])
    for panel, label in zip(axes, labels, strict=True):
        _dress(panel, *label)
    return figure, axes


def _dress(axes: Axes, xlabel: str, ylabel: str, name: str) -> None:
    axes.set_xlabel(xlabel, fontsize=_TEXT)
    axes.set_ylabel(ylabel, fontsize=_TEXT)
    axes.set_title(name, fontsize=_TEXT)
    axes.tick_params(labelsize=_SMALL)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes, **options: Any) -> None:
    """The legend of these axes; `options` as matplotlib's."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=_SMALL, frameon=False, **options)


def wrapped(name: str) -> str:
    """A long label in lines of 30 characters, or of a word that is longer."""
    return textwrap.fill(name, 30, break_long_words=False, break_on_hyphens=False)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, without a mark of the library or the time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
