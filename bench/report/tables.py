"""Tables of texts in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from tabulate import tabulate


def without_empty_columns(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The rows as a table, without the columns that are empty or missing in every row."""
    table = pd.DataFrame(rows).fillna("")
    return table.loc[:, (table != "").any()]


def markdown(table: pd.DataFrame) -> str:
    """A table as it is; texts that look like numbers keep their digits."""
    return tabulate(
        table,  # type: ignore[arg-type]
        headers="keys",
        tablefmt="github",
        showindex=False,
        disable_numparse=True,
    )


def percent(share: float) -> str:
    """0.0512 is 5.1."""
    return f"{100 * share:.1f}"
