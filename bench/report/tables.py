"""Tables of texts in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
