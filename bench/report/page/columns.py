"""The columns of a page's table: each as a cell, as a value to sort by, and as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.report import escape
from bench.report.boards.model import Board, Row
from bench.report.tables import percent
from bench.results.estimate import Estimate


@dataclass(frozen=True)
class Cell:
    """A row on its board.

    Attributes:
        id: of the row, of letters and digits; the same as long as setup and name are.
        at: the number of its board.
        board, row: both.
    """

    id: str
    at: int
    board: Board
    row: Row


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: a word, in links and in data.
        title: its heading.
        kind: how its values are compared and written; an interval is [value, low, high], in
            shares, `texts` is a list.
        value: as JSON has it; None where the row has none.
        shown: `always`, at first on `wide` screens, or only when chosen (`more`).
        cell: as HTML; by default what the kind's values look like.
    """

    key: str
    title: str
    kind: Literal["text", "texts", "number", "interval"]
    value: Callable[[Cell], Any]
    shown: Literal["always", "wide", "more"] = "more"
    cell: Callable[[Cell], str] | None = None

    def html(self, cell: Cell) -> str:
        """What stands in the table."""
        if self.cell:
            return self.cell(cell)
        value = self.value(cell)
        if value is None or value == []:
            return ""
        if self.kind == "interval":
            return interval(value)
        return text(", ".join(value) if self.kind == "texts" else _written(value))

    def order(self, cell: Cell) -> str:
        """What is sorted by where that is not the text."""
        value = self.value(cell)
        if self.kind in ("text", "texts"):
            return ""
        number = value[0] if isinstance(value, list) else value
        return "-1" if number is None else repr(float(number))


def text(value: str) -> str:
    """A stranger's text as HTML, that neither is markup nor turns what stands beside it."""
    return f"<bdi>{escape.html(value)}</bdi>"


def interval(value: Sequence[float | None]) -> str:
    """`98.2 [97.2, 98.9]` in percent, of which only the whole interval may move to a new line."""
    shown, *ends = value
    assert shown is not None
    if None in ends:
        return f"<b>{percent(shown)}</b>"
    low, high = (percent(one or 0.0) for one in ends)
    return f'<b>{percent(shown)}</b> <span class="ends">[{low}, {high}]</span>'


def bar(value: Sequence[float | None]) -> str:
    """An interval on a scale from 0 to 1, for the eye alone."""
    shown, low, high = (100 * one if one is not None else None for one in value)
    whisker = "" if low is None or high is None else _rect("whisker", low, high - low, 3, 2)
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f"{_rect('track', 0, 100, 3, 2)}{whisker}{_rect('mark', (shown or 0) - 1, 2, 0, 8)}</svg>"
    )


def _rect(name: str, x: float, width: float, y: int, height: int) -> str:
    return f'<rect class="{name}" x="{x:.1f}" width="{width:.1f}" y="{y}" height="{height}"></rect>'


def triple(estimate: Estimate | None) -> list[float | None] | None:
    """As JSON has it: without NaN."""
    if estimate is None:
        return None
    return [
        one if one - one == 0 else None for one in (estimate.value, estimate.low, estimate.high)
    ]


def columns(cells: Sequence[Cell]) -> list[Column]:
    """Those that say something of these rows."""
    several = len({cell.at for cell in cells}) > 1
    return [
        column
        for column in _COLUMNS
        if (several or column.key != "board")
        and (column.shown == "always" or any(_says(column.value(cell)) for cell in cells))
    ]


def _says(value: object) -> bool:
    return value not in (None, "", [])


def _written(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def flags(row: Row) -> list[str]:
    """What a reader must know of a row, in words."""
    unranked = row.unranked.partition(": ")[0]
    names = [note.flag for note in row.notes]
    # A finding may say the same in capitals.
    told = unranked.lower() in map(str.lower, names)
    return [unranked, *names] if unranked and not told else names


def attack_names(row: Row) -> list[str]:
    """The attacks without their settings, controls left out."""
    names = (
        one.attack.partition(" (")[0].partition(":")[0] for one in row.attacks if not one.control
    )
    return list(dict.fromkeys(names))


def _defense(cell: Cell) -> str:
    row = cell.row
    builds = f' <span class="quiet">{row.counted}</span>' if row.counted else ""
    struck = row.unranked in ("collapsed", "failed a check")
    name = f"<s>{text(row.defense)}</s>" if struck else text(row.defense)
    link = f'<a class="name" href="#d-{cell.id}">{_breakable(name)}</a>'
    # One item beside the button, so that the line breaks between words and not within a name.
    return f'<div class="defense"><span>{link}{builds}</span></div>'


def _breakable(html: str) -> str:
    """With places where a long spec may be cut; what stands for a character has no such sign."""
    return re.sub(r"(?<=[,:=])(?=[^<])", "<wbr>", html)


def _setup(cell: Cell) -> str:
    return f'<div class="setup">{text(str(cell.board.setup))}</div>'


def _robust(cell: Cell) -> str:
    value = triple(cell.row.robust)
    if not cell.row.attacked or value is None:
        return '<span class="quiet">not attacked</span>'
    return interval(value) + bar(value)


def _certified(cell: Cell) -> str:
    extras = cell.row.extras
    value = triple(extras.certified)
    if value is None:
        return ""
    vote = "" if extras.alpha is None else f' <span class="quiet">vote, {extras.alpha:g}</span>'
    return interval(value) + vote


def _chips(words: Sequence[str]) -> str:
    return " ".join(f'<span class="chip">{text(word)}</span>' for word in words)


def _audit(cell: Cell) -> str:
    audit = cell.row.audit
    looks = {"no-evidence-found": "good", "masking-evidence": "bad", "inconclusive": "warn"}
    spoke = f" ({', '.join(one.id for one in audit.spoke)})" if audit.spoke else ""
    return f'<span class="{looks.get(audit.state, "quiet")}">{text(audit.state + spoke)}</span>'


def _rank(cell: Cell) -> str:
    none = '<span aria-hidden="true">-</span><span class="hidden">none</span>'
    return f'<span class="place">{cell.row.place}</span>' if cell.row.rank else none


def _finished(cell: Cell) -> str:
    return max((source.finished for source in cell.row.sources), default="")[:10]


def _draws(cell: Cell) -> list[float | None] | None:
    draws = cell.row.extras.all_draws
    return None if draws is None else [draws[1], None, None]


_COLUMNS = (
    # What is not ranked stands below what is.
    Column("rank", "rank", "number", lambda c: c.row.rank or 10**6, "always", _rank),
    Column("defense", "defense", "text", lambda c: c.row.defense, "always", _defense),
    Column("board", "setup", "text", lambda c: str(c.board.setup), "wide", _setup),
    Column("clean", "clean", "interval", lambda c: triple(c.row.clean), "wide"),
    Column(
        "robust",
        "robust",
        "interval",
        lambda c: triple(c.row.robust) if c.row.attacked else None,
        "always",
        _robust,
    ),
    Column(
        "certified",
        "certified",
        "interval",
        lambda c: triple(c.row.extras.certified),
        "wide",
        _certified,
    ),
    Column("family", "family", "text", lambda c: c.row.family, "wide"),
    Column("access", "data access", "texts", lambda c: list(c.row.access) or ["none"], "wide"),
    Column("audit", "audit", "text", lambda c: c.row.audit.state, "wide", _audit),
    Column(
        "notes", "notes", "texts", lambda c: flags(c.row), "wide", lambda c: _chips(flags(c.row))
    ),
    Column("f1", "macro-F1 clean", "interval", lambda c: [c.row.macro_f1[0], None, None]),
    Column("f1low", "lowest macro-F1", "interval", lambda c: [c.row.macro_f1[1], None, None]),
    Column("attacks", "attacks", "texts", lambda c: attack_names(c.row)),
    Column("passes", "passes of all attacks/image", "number", lambda c: c.row.passes),
    Column("prediction", "passes/prediction", "number", lambda c: c.row.extras.passes),
    Column("denoiser", "denoiser passes", "number", lambda c: c.row.extras.denoiser_passes),
    Column("replayed", "replayed", "interval", lambda c: triple(c.row.extras.replayed)),
    Column("draws", "right in all draws", "interval", _draws),
    Column("views", "any view", "interval", lambda c: triple(c.row.extras.any_view)),
    Column("kind", "kind", "text", lambda c: c.row.kind),
    Column("builds", "builds", "number", lambda c: len(c.row.builds)),
    Column("images", "images", "number", lambda c: c.board.setup.n),
    Column("finished", "finished", "text", _finished),
)
