"""Boards as plain text that fits a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from bench.report import escape
from bench.report.boards.model import Board, Note, Row
from bench.report.boards.ranking import COLLAPSED, FAILED
from bench.report.tables import fitted, percent
from bench.report.words import failure_label
from bench.results.record import Failure

WIDE = 110
"""From how many columns on the whole first table fits."""


def text(boards: Sequence[Board], failures: Sequence[Failure] = (), title: str = "") -> str:
    """All boards, in the width of the terminal, 80 in a pipe: rank, defense, clean, robust, notes;
    in a wide one the other columns of the first table, too.
    """
    width = shutil.get_terminal_size().columns
    parts = [_filled(title, width)] if title else []
    for board in boards:
        parts += _section(board, width)
    if failures:
        told = (f"- {failure_label(failure)}" for failure in failures)
        parts += ["Errors:", *(_filled(one, width) for one in told)]
    return "\n\n".join(parts) + "\n"


def _filled(text: str, width: int) -> str:
    return textwrap.fill(escape.terminal(text), width, break_on_hyphens=False)


def _section(board: Board, width: int) -> list[str]:
    table = fitted([_row(row, width) for row in board.rows], width)
    said = [
        *dict.fromkeys(reason for row in board.rows for reason in _reasons(row)),
        "robust: worst case for each image, an upper bound, with a 95 % interval. Ranked is who "
        f"faced all of these: {'; '.join(board.protocol)}.",
    ]
    above = [str(board.setup), " ".join(board.sentences)]
    return [
        *(_filled(text, width) for text in above),
        table,
        *(_filled(text, width) for text in said),
    ]


def _reasons(row: Row) -> list[str]:
    """Sentences that say more than the notes of the table."""
    reasons = [f"{row.defense}{_of_builds(note)}, {note.flag}: {note.reason}" for note in row.notes]
    unranked = [f"{row.defense}, {row.unranked}"] if ": " in row.unranked else []
    return [*unranked, *reasons]


def _of_builds(note: Note) -> str:
    return f" (build {', '.join(map(str, note.builds))})" if note.builds else ""


def _row(row: Row, width: int) -> dict[str, str]:
    builds = f", {row.counted}" if row.counted else ""
    flags = [note.flag for note in row.notes]
    unranked = row.unranked.partition(":")[0]
    told = "COLLAPSED" in flags and unranked == COLLAPSED
    audit = row.audit.state if width < WIDE and row.audit.profile else ""
    notes = ", ".join(filter(None, ["" if told else unranked, *flags, audit]))
    struck = "~~" if unranked in (COLLAPSED, FAILED) else ""
    first = {
        "rank": row.place or "-",
        "defense": f"{struck}{row.defense}{struck}{builds}",
        "clean": percent(row.clean.value) if width < WIDE else str(row.clean),
        "robust": str(row.robust) if row.attacked else "not attacked",
    }
    wide = {
        "certified": str(row.extras.certified or ""),
        "macro-F1": " -> ".join(map(percent, row.macro_f1)),
        "data access": ", ".join(row.access) or "none",
        "audit": row.audit.state,
    }
    return {**first, **(wide if width >= WIDE else {}), "notes": notes}
