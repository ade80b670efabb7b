"""The checks of published tables. None knows a paper: they know attacks, rounding and test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.audit.cells import Cell
from bench.audit.class_checks import below_constant, constant_answers, unmoved
from bench.audit.figure_checks import (
    clean_differs,
    copied_rows,
    exchanged_rows,
    impossible_counts,
    swapped_columns,
    two_figures,
)
from bench.audit.order_checks import (
    above_clean,
    larger_balls,
    more_draws,
    violations,
    weak_attacks,
)
from bench.audit.table_findings import TableFinding

CHECKS: dict[str, Callable[[Sequence[Cell]], Iterator[TableFinding]]] = {
    "order": violations,
    "clean": above_clean,
    "ball": larger_balls,
    "draws": more_draws,
    "weak-attack": weak_attacks,
    "constant": constant_answers,
    "below-constant": below_constant,
    "unmoved": unmoved,
    "count": impossible_counts,
    "swapped": swapped_columns,
    "exchanged": exchanged_rows,
    "clean-differs": clean_differs,
    "two-figures": two_figures,
    "copied": copied_rows,
}
"""Every check by its name: from all cells of all tables to findings."""
