"""Records as a small HTML table, as notebooks show it."""

from __future__ import annotations

from collections.abc import Sequence

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
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{html(cell)}</td>' for cell in row)}</tr>" for row in rows)
    said = [html(setup) for setup in setups] if len(setups) == 1 else []
    below = [f"{len(records) - _SHOWN} more rows"] * (len(records) > _SHOWN)
    below += [html(failure_label(failure)) for failure in failures]
    return "".join(
        [
            *(f"<p>{text}</p>" for text in said),
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
            *(f"<p>{text}</p>" for text in below),
        ]
    )


def _row(record: Record) -> list[str]:
    return [
        defense_label(record),
        attack_label(record),
        str(record.metrics.clean.mean),
        str(record.metrics.adversarial.mean),
        ", ".join(flags([record])),
        heading(record),
    ]
