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


def fitted(rows: Sequence[Mapping[str, str]], width: int) -> str:
    """A plain table that fits so many columns of a terminal: the widest columns give way, and their
    texts go on below. Without the columns that are empty in every row.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    kept = [name for name in names if any(row.get(name) for row in rows)]
    cells = [[escape.terminal(row.get(name, "")) for name in kept] for row in rows]
    columns = list(zip(kept, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths, default=0) > _NARROW:
        widths[widths.index(max(widths))] -= 1
    lines = [kept, ["-" * one for one in widths], *cells]
    return "\n".join(line for row in lines for line in _beside(row, widths))


_NARROW = 8


def _beside(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """The lines of one row."""
    wrapped = [_broken(cell, width) for cell, width in zip(row, widths, strict=True)]
    for parts in zip_longest(*wrapped, fillvalue=""):
        yield "  ".join(map(str.ljust, parts, widths)).rstrip()


def _broken(text: str, width: int) -> list[str]:
    """Lines of at most this width, cut behind spaces, commas and colons where that is possible."""
    lines = [""]
    for piece in re.findall(r"[^ ,:]*[ ,:]*", text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines]
