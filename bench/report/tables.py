"""Tables of texts in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from tabulate import tabulate

from bench.report import escape


def without_empty_columns(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The rows as a table, without the columns that are empty or missing in every row."""
    table = pd.DataFrame(rows).fillna("")
    return table.loc[:, (table != "").any()]


def markdown(table: pd.DataFrame) -> str:
    """A table as text; texts that look like numbers keep their digits, and what would end a cell or
    be more than text is escaped.
    """
    return tabulate(
        [[escape.markdown(str(cell)) for cell in row] for row in table.itertuples(index=False)],
        headers=[escape.markdown(str(name)) for name in table.columns],
        tablefmt="github",
        showindex=False,
        disable_numparse=True,
    )


def percent(share: float) -> str:
    """0.0512 is 5.1."""
    return f"{100 * share:.1f}"
