"""Records and boards as small HTML tables, as notebooks show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.report.boards.model import Board, Row
from bench.report.escape import html
from bench.report.words import attack_label, defense_label, failure_label, flags, heading
from bench.results.record import Failure, Record

_SHOWN = 40


def table(records: Sequence[Record], failures: Sequence[Failure] = ()) -> str:
    """Defense, attack, clean, robust and notes of each record; failures below. Of many rows the
    first 40.
    """
    setups = {heading(record) for record in records}
    names = ["defense", "attack", "clean", "robust", "notes", *["setup"] * (len(setups) > 1)]
    rows = [_row(record)[: len(names)] for record in records[:_SHOWN]]
    below = [f"{len(records) - _SHOWN} more rows"] * (len(records) > _SHOWN)
    below += [failure_label(failure) for failure in failures]
    return _html(setups if len(setups) == 1 else (), names, rows, below)


def board_table(board: Board) -> str:
    """Setup, sentences, and the first columns of a board. Of many rows the first 40."""
    names = ["rank", "defense", "clean", "robust", "data access", "audit", "notes"]
    below = [f"{len(board.rows) - _SHOWN} more rows"] * (len(board.rows) > _SHOWN)
    above = [str(board.setup), " ".join(board.sentences)]
    return _html(above, names, map(_board_row, board.rows[:_SHOWN]), below)


def _html(
    above: Iterable[str],
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    below: Iterable[str],
) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{html(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return "".join(
        [
            *(f"<p>{html(text)}</p>" for text in above),
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
            *(f"<p>{html(text)}</p>" for text in below),
        ]
    )


def _board_row(row: Row) -> list[str]:
    return [
        "-" if row.rank is None else str(row.rank),
        row.defense,
        str(row.clean),
        str(row.robust) if row.attacked else "not attacked",
        ", ".join(row.access) or "none",
        row.audit.state,
        ", ".join(filter(None, [row.unranked, *(note.flag for note in row.notes)])),
    ]


def _row(record: Record) -> list[str]:
    return [
        defense_label(record),
        attack_label(record),
        str(record.metrics.clean.mean),
        str(record.metrics.adversarial.mean),
        ", ".join(flags([record])),
        heading(record),
    ]
