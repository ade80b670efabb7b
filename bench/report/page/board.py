"""Boards as one page of HTML: a table that reads without scripts, and sorts, filters and draws with
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import escape
from bench.report.boards.model import Board, Row
from bench.report.notes import RANK
from bench.report.page.columns import Cell, Column, attack_names, columns, text, triple
from bench.report.page.details import Where, details
from bench.report.page.document import document, source
from bench.report.page.published import Beside, beside
from bench.report.reference import Reference
from bench.report.tables import percent
from bench.report.words import failure_label
from bench.results.record import Failure

_SCRIPTS = ("vendor/datatables.min.js", "vendor/d3.min.js", "vendor/plot.min.js")

_CLASSES = 100
"""Of data sets with more classes no bars are drawn."""

_FEW = 3
"""Of more boards than these only the sentence to take home stands on top."""


def page(
    boards: Sequence[Board],
    failures: Sequence[Failure] = (),
    *,
    folder: Path = Path(),
    title: str = "",
    references: Sequence[Reference] = (),
    pages: Mapping[str, str] | None = None,
    listed: str = "",
) -> str:
    """All boards as one page.

    Args:
        boards: of any setups.
        failures: evaluations that crashed.
        folder: where the page will lie; its links lead from there.
        title: of the page; the first board's by default.
        references: published numbers, to stand beside rows of their defense and data set.
        pages: by a record's id, the address of a page about it.
        listed: the address of a page that lists all records.
    """
    name = title or (boards[0].title if boards else "Board")
    cells = [
        Cell(_id(board, row), at, board, row)
        for at, board in enumerate(boards)
        for row in board.rows
    ]
    published = {cell.id: beside(cell.board, cell.row, references) for cell in cells}
    chosen = columns(cells)
    where = Where(folder, pages or {})
    body = "\n".join(
        [
            '<a class="hidden skip" href="#table">To the table</a>',
            *([f'<nav><a href="{listed}">All records</a></nav>'] if listed else []),
            f"<header><h1>{text(name)}</h1>{_THEME}</header>",
            "<main>",
            *_about(boards),
            _TOOLS,
            _table(name, chosen, cells),
            _CHARTS,
            '<section id="details"><h2>Each row</h2>',
            *(details(cell, where, published[cell.id]) for cell in cells),
            "</section>",
            *_failures(failures),
            "</main>",
            '<footer class="quiet"><p>Made by <code>'
            f"{'bench view' if listed else 'bench leaderboard --format html'}</code>. Shares "
            "in percent with 95 % intervals.</p></footer>",
        ]
    )
    return document(
        name,
        body,
        data=_data(name, boards, cells, chosen, published),
        scripts=[*map(source, _SCRIPTS), source("board.js"), source("charts.js")],
        styles=[source("board.css")],
    )


def _id(board: Board, row: Row) -> str:
    return hashlib.sha256(f"{board.setup}\n{row.defense}".encode()).hexdigest()[:10]


_THEME = (
    '<div class="controls"><label>Colours <select class="theme">'
    '<option value="auto">as the system</option><option value="light">light</option>'
    '<option value="dark">dark</option></select></label></div>'
)

_TOOLS = """<h2 id="rows">Rows</h2>
<section class="controls tools" aria-label="Filters">
<label class="search">Search <input type="search" id="search" autocomplete="off"></label>
<label id="of-board" hidden>Setup <select id="board"></select></label>
<div id="facets" class="controls"></div>
<button type="button" id="csv">CSV of what is shown</button>
<button type="button" id="link">Copy a link to this view</button>
<button type="button" id="reset">Reset</button>
<p id="status" role="status" class="quiet"></p>
</section>
<noscript><p class="quiet">Sorting, filters and charts need scripts; the table and what stands below
it do not.</p></noscript>"""

_CHARTS = """<section id="charts" class="controls" aria-labelledby="charts-title">
<h2 id="charts-title">Charts</h2>
<p class="quiet">Of the rows that the filters leave, and of one setup. Hollow: not ranked. Bars are
95 % intervals. The table holds every number.</p>
<label id="of-charts" hidden>Setup <select id="charted"></select></label>
<div id="figures"></div>
</section>"""


def _about(boards: Sequence[Board]) -> list[str]:
    """What was attacked and how, what to take home, how to read it."""
    return [_of_board(at, board, several=len(boards)) for at, board in enumerate(boards)]


def _of_board(at: int, board: Board, several: int) -> str:
    setup, reading = text(str(board.setup)), _reading(board)
    if several > _FEW:
        last = text(board.sentences[-1])
        inside = f"<p><b>{setup}:</b> {last}</p>{reading}"
        return f'<section class="about short" data-board="{at}">{inside}</section>'
    inside = f"<h2>{setup}</h2>{_paragraphs(map(text, board.sentences))}"
    return f'<section class="about" data-board="{at}">{inside}{reading}</section>'


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{line}</p>" for line in lines)


def _reading(board: Board) -> str:
    constant = max((row.constant for row in board.rows), default=0.0)
    asked = "".join(f"<li>{text(one)}</li>" for one in board.protocol)
    return (
        "<details><summary>How to read it, and who is ranked</summary>"
        f"{_paragraphs(map(text, filter(None, [board.note, board.more])))}"
        f"<p>{RANK} Ranked is who faced:</p>"
        f"<ul>{asked}</ul><p>A constant answer gets {percent(constant)}.</p></details>"
    )


def _table(name: str, chosen: Sequence[Column], cells: Sequence[Cell]) -> str:
    """All rows, with what they are sorted by."""
    head = "".join(
        f'<th scope="col" data-key="{one.key}"{_look(one)}>{one.title}</th>' for one in chosen
    )
    body = "\n".join(_line(chosen, cell) for cell in cells)
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Rows of the board">\n'
        f'<table id="table"><caption>{text(name)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _line(chosen: Sequence[Column], cell: Cell) -> str:
    inside = []
    for one in chosen:
        tag = 'th scope="row"' if one.key == "defense" else "td"
        order = str(cell.at) if one.key == "board" else one.order(cell)
        sorted_by = f' data-order="{order}"' if order else ""
        inside.append(f"<{tag}{_look(one)}{sorted_by}>{one.html(cell)}</{tag[:2]}>")
    return f'<tr id="{cell.id}">{"".join(inside)}</tr>'


def _look(column: Column) -> str:
    looks = ["number"] * (column.kind in ("number", "interval")) + ["more"] * (
        column.shown == "more"
    )
    return f' class="{" ".join(looks)}"' if looks else ""


def _failures(failures: Sequence[Failure]) -> list[str]:
    lines = "".join(f"<li>{text(failure_label(one))}</li>" for one in failures)
    return [f"<section><h2>Errors</h2><ul>{lines}</ul></section>"] if failures else []


# What the scripts are given -----------------------------------------------------------------------


def _data(
    name: str,
    boards: Sequence[Board],
    cells: Sequence[Cell],
    chosen: Sequence[Column],
    published: Mapping[str, Sequence[Beside]],
) -> dict[str, Any]:
    return {
        "title": escape.terminal(name),
        "columns": [
            {"key": one.key, "title": one.title, "kind": one.kind, "shown": one.shown}
            for one in chosen
        ],
        "boards": [_of_setup(board) for board in boards],
        "rows": [_of_row(cell, chosen, published[cell.id]) for cell in cells],
    }


def _of_setup(board: Board) -> dict[str, Any]:
    setup = board.setup
    # Boards of one family differ in eps alone: their rows make a curve.
    family = [setup.dataset, setup.classifier, setup.norm, setup.n]
    return {
        "name": escape.terminal(str(setup)),
        "dataset": escape.terminal(setup.dataset),
        "family": escape.terminal("\n".join(map(str, family))),
        "setting": escape.terminal(f"{setup.dataset}, {setup.classifier}, {setup.n} images"),
        "norm": escape.terminal(setup.norm),
        "eps": setup.eps,
        "constant": max((row.constant for row in board.rows), default=0.0),
    }


def _of_row(cell: Cell, chosen: Sequence[Column], published: Sequence[Beside]) -> dict[str, Any]:
    row = cell.row
    return {
        "id": cell.id,
        "board": cell.at,
        "values": {one.key: _harmless(one.value(cell)) for one in chosen},
        "name": escape.terminal(row.defense),
        "ranked": row.rank is not None,
        "stochastic": row.kind == "stochastic",
        "attacks": _harmless(attack_names(row)),
        "faced": _harmless(sorted(one.attack for one in row.attacks if not one.control)),
        "passes": row.passes,
        "cost": row.extras.passes,
        "replayed": triple(row.extras.replayed),
        "replayPasses": row.extras.replay_passes,
        "classes": _of_classes(row),
        "published": [_of_published(one) for one in published],
    }


def _of_classes(row: Row) -> list[list[Any]]:
    few = len(row.classes) <= _CLASSES
    return [[one.label, one.n, triple(one.clean), triple(one.robust)] for one in row.classes if few]


def _of_published(one: Beside) -> dict[str, Any]:
    return {
        "value": one.reference.value / 100,
        "metric": escape.terminal(one.reference.metric),
        "attack": escape.terminal(one.reference.attack),
        "ours": triple(one.ours),
        "measured": escape.terminal(one.measured),
        "differs": escape.terminal("; ".join(one.differs)),
    }


def _harmless(value: Any) -> Any:
    """Without what turns the direction of writing; numbers stay."""
    if isinstance(value, list):
        return [_harmless(one) for one in value]
    return escape.terminal(value) if isinstance(value, str) else value
