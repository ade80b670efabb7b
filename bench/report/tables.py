"""Tables of texts, in Markdown and for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from tabulate import tabulate

from bench.report import escape

if TYPE_CHECKING:
    import pandas as pd


def without_empty_columns(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The rows as a table, without the columns that are empty or missing in every row."""
    import pandas as pd

    table = pd.DataFrame(rows).fillna("")
    return table.loc[:, (table != "").any()]


def markdown(table: pd.DataFrame) -> str:
    """A table as text; texts that look like numbers keep their digits, and what would end a cell or
    be more than text is escaped.
    """
    return _text(table.columns, table.itertuples(index=False))


def markdown_rows(rows: Sequence[Mapping[str, object]]) -> str:
    """As `markdown(without_empty_columns(rows))`, for texts alone: `bench run` need not wait for
    pandas.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    kept = [name for name in names if any(row.get(name, "") != "" for row in rows)]
    return _text(kept, ([row.get(name, "") for name in kept] for row in rows))


def _text(names: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    return tabulate(
        [[escape.markdown(str(cell)) for cell in row] for row in rows],
        headers=[escape.markdown(str(name)) for name in names],
        tablefmt="github",
        showindex=False,
        disable_numparse=True,
    )


def percent(share: float) -> str:
    """0.0512 is 5.1."""
    return f"{100 * share:.1f}"


_SPARED = (
    "passes/image",
    "macro-F1",
    "median distance",
    "detector",
    "any view",
    "target reached",
    "all draws",
    "constant",
    "base",
)
"""Columns that a narrow terminal can do without, the first one first."""


def fit(text: str, width: int) -> str:
    """Text whose tables of Markdown fit so many columns of a terminal: one that is wider becomes a
    plain one without the columns that it can do without, and a line below it names them.
    """
    parts = re.split(r"(?m)^((?:\|.*(?:\n|$)){2,})", text)
    return "".join(_fit(part, width) if part.startswith("|") else part for part in parts)


def _fit(table: str, width: int) -> str:
    lines = table.splitlines()
    if max(map(len, lines)) <= width:
        return table
    names, _, *rows = [
        [_text_of(cell) for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]] for line in lines
    ]
    kept, spared = list(names), [name for name in _SPARED if name in names]
    hidden = []
    for name in spared:
        if _natural(names, rows, kept) <= width:
            break
        kept.remove(name)
        hidden.append(name)
    told = f"\n(a wider terminal shows {', '.join(hidden)})"
    cells = [dict(zip(names, row, strict=False)) for row in rows]
    shown = fitted([{name: one.get(name, "") for name in kept} for one in cells], width)
    return shown + (told if hidden else "") + ("\n" if table.endswith("\n") else "")


def _natural(names: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[str]) -> int:
    """How wide a plain table of these columns is where no cell gives way."""
    columns = dict(zip(names, zip(*rows, strict=False), strict=False))
    return sum(2 + max(len(name), *map(len, columns.get(name, ("",)))) for name in kept) - 2


def _text_of(cell: str) -> str:
    """What `escape.markdown` escaped."""
    return re.sub(r"(\\+)([|<\]])", lambda at: "\\" * (len(at[1]) // 2) + at[2], cell.strip())


def fitted(rows: Sequence[Mapping[str, str]], width: int) -> str:
    """A plain table that fits so many columns of a terminal: the widest columns give way, and their
    texts go on below. Without the columns that are empty in every row.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    kept = [name for name in names if any(row.get(name) for row in rows)]
    cells = [[escape.terminal(row.get(name, "")) for name in kept] for row in rows]
    columns = list(zip(kept, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    pieces = [[len(one.rstrip()) for cell in column for one in _pieces(cell)] for column in columns]
    for least in ([max(lengths, default=0) for lengths in pieces], [_NARROW] * len(widths)):
        while sum(widths) + 2 * (len(widths) - 1) > width:
            spare = [have - need for have, need in zip(widths, least, strict=True)]
            if max(spare, default=0) <= 0:
                break
            widest = max((at for at, over in enumerate(spare) if over > 0), key=widths.__getitem__)
            widths[widest] -= 1
    lines = [kept, ["-" * one for one in widths], *cells]
    return "\n".join(line for row in lines for line in _beside(row, widths))


_NARROW = 8
"""A column gives way down to its longest piece; where that is not enough, to so many characters."""


def _pieces(text: str) -> list[str]:
    """What stays together: an interval, and else what no space, comma or colon cuts."""
    return re.findall(r"(?:\[[^\]]*\]|[^ ,:])*[ ,:]*", text)


def _beside(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """The lines of one row."""
    wrapped = [_broken(cell, width) for cell, width in zip(row, widths, strict=True)]
    for parts in zip_longest(*wrapped, fillvalue=""):
        yield "  ".join(map(str.ljust, parts, widths)).rstrip()


def _broken(text: str, width: int) -> list[str]:
    """Lines of at most this width, cut behind spaces, commas and colons where that is possible."""
    lines = [""]
    whole = (([one], re.findall("[^ ]+ *", one)) for one in _pieces(text))
    parts = (one if len(one[0].rstrip()) <= width else cut for one, cut in whole)
    for piece in (part for several in parts for part in several):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines]
