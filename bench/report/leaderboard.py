"""Boards: a row a defense, with the worst case per image over all attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.report import escape
from bench.report.audit import badge
from bench.report.boards.entry import Entry
from bench.report.grouping import by_defense, by_setup, defense_names, newest
from bench.report.notes import board_notes
from bench.report.tables import markdown, percent, without_empty_columns
from bench.report.words import (
    BUILT,
    attack_label,
    audit_of,
    built_lines,
    built_messages,
    data_access,
    defense_label,
    denoiser_passes,
    failure_label,
    heading,
    struck_through,
)
from bench.results.record import Failure, Record


@dataclass(frozen=True)
class Board:
    """The leaderboard of one setup: data set, classifier, threat model and images.

    Attributes:
        heading: the setup in words.
        note: what the columns mean.
        table: one row a defense, best worst case first; every share in percent as text.
        numbers: the same rows with plain numbers, for CSV.
        built: see `bench.report.words.built_lines`.
    """

    heading: str
    note: str
    table: pd.DataFrame
    numbers: pd.DataFrame
    built: tuple[str, ...] = ()


def boards(records: Sequence[Record]) -> list[Board]:
    """One board a setup."""
    by_id = {record.id: record for record in records}
    return [_board(group, by_id) for group in by_setup(records)]


def _board(group: list[Record], by_id: Mapping[str, Record]) -> Board:
    attacks = list(dict.fromkeys(attack_label(record) for record in group))
    entries = [Entry(records) for records in by_defense(newest(group))]
    entries.sort(
        key=lambda entry: (
            entry.first.metrics.collapsed,
            -entry.worst().value,
            entry.first.title["defense"],
        )
    )
    named = list(zip(defense_names([one.records for one in entries]), entries, strict=True))
    texts = [
        {"defense": struck_through(name, entry.records), **_text_row(entry, attacks, by_id)}
        for name, entry in named
    ]
    setup = heading(group[0])
    numbers = [{"setup": setup, **_number_row(entry, by_id)} for entry in entries]
    built = built_lines((name, record) for name, entry in named for record in entry.records)
    return Board(
        setup,
        board_notes(group),
        without_empty_columns(texts),
        pd.DataFrame(numbers),
        tuple(built),
    )


def _text_row(entry: Entry, attacks: list[str], by_id: Mapping[str, Record]) -> dict[str, str]:
    metrics, base, inference = entry.first.metrics, entry.base(by_id), entry.inference()
    all_draws = " -> ".join(percent(entry.all_draws(w).value) for w in ("clean", "adversarial"))
    return {
        "clean": str(metrics.clean.mean),
        **{attack: _under_attack(entry, attack) for attack in attacks},
        "worst case": str(entry.worst()),
        "certified": _certified_text(entry),
        "replayed": str(entry.replayed() or ""),
        "all draws": all_draws if metrics.adversarial.draws > 1 else "",
        "base": percent(base.worst().value) if base else "",
        "any view": str(entry.any_view() or ""),
        "macro-F1": f"{percent(metrics.clean.macro_f1.value)} -> {percent(entry.lowest_f1())}",
        "constant": percent(metrics.constant_accuracy),
        "data access": data_access(entry.first),
        "passes/image": f"{entry.passes():.0f}",
        "passes/prediction": f"{inference.passes:.1f}" if inference else "",
        "denoiser passes": denoiser_passes(inference),
        "RobustBench": _admission(entry),
        "audit": badge(audit_of(entry.records)),
        "flags": ", ".join(_flags(entry)),
    }


def _flags(entry: Entry) -> list[str]:
    return [*_scale(entry.first), *(flag for flag, _ in entry.reasons())]


def _scale(record: Record) -> list[str]:
    reduced = f"n={record.scale['n']} of {record.scale['available']}"
    return [reduced] * record.scale["reduced"]


def _certified_text(entry: Entry) -> str:
    """The share, and of a vote that it may err."""
    certified, vote = entry.certified(), entry.vote()
    if not vote:
        return str(certified or "")
    return f"{certified} (vote, alpha={vote.alpha:g})"


def _admission(entry: Entry) -> str:
    """Which of RobustBench's conditions the defense fails; empty where that is not measured."""
    inference = entry.inference()
    return (", ".join(inference.obstacles()) or "admits") if inference else ""


def _under_attack(entry: Entry, attack: str) -> str:
    """Robust accuracy under one attack; of several seeds the mean and the range."""
    values = [
        100 * record.metrics.adversarial.mean.value
        for record in entry.records
        if attack_label(record) == attack
    ]
    if not values:
        return ""
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}-{max(values):.1f})"


def _number_row(entry: Entry, by_id: Mapping[str, Record]) -> dict[str, object]:
    metrics, worst, base = entry.first.metrics, entry.worst(), entry.base(by_id)
    replayed, any_view, inference = entry.replayed(), entry.any_view(), entry.inference()
    certified, vote, audit = entry.certified(), entry.vote(), audit_of(entry.records)
    return {
        "defense": defense_label(entry.first),
        "build_seed": entry.first.identity["seeds"]["build"],
        "n": metrics.n,
        "clean": metrics.clean.mean.value,
        "clean_low": metrics.clean.mean.low,
        "clean_high": metrics.clean.mean.high,
        "worst_case": worst.value,
        "worst_case_low": worst.low,
        "worst_case_high": worst.high,
        "certified": certified.value if certified else None,
        "certified_alpha": vote.alpha if vote else None,
        "replayed": replayed.value if replayed else None,
        "any_view": any_view.value if any_view else None,
        "base_worst_case": base.worst().value if base else None,
        "clean_macro_f1": metrics.clean.macro_f1.value,
        "lowest_macro_f1": entry.lowest_f1(),
        "constant_accuracy": metrics.constant_accuracy,
        "collapsed": any(record.metrics.collapsed for record in entry.records),
        "data_access": data_access(entry.first),
        "passes_per_image": entry.passes(),
        "passes_per_prediction": inference.passes if inference else "",
        "robustbench": _admission(entry),
        "audit": audit.verdict if audit else None,
        "flags": ", ".join(_flags(entry)),
        "attacks": "; ".join(sorted({attack_label(record) for record in entry.records})),
        "seeds": "+".join(sorted({record.title["seed"] for record in entry.records})),
        "built": "; ".join(built_messages(entry.first)),
    }


def page(made: Sequence[Board], failures: Sequence[Failure] = ()) -> str:
    """All boards as one Markdown page, and what crashed, as errors and not as numbers."""
    sections = [_section(board) for board in made]
    if failures:
        lines = [f"- {escape.markdown(failure_label(failure))}" for failure in failures]
        sections.append("## Errors\n\n" + "\n".join(lines) + "\n")
    return "\n".join(["# Leaderboard\n", *sections])


def _section(board: Board) -> str:
    paragraphs = [f"## {escape.markdown(board.heading)}", markdown(board.table), board.note]
    paragraphs += [BUILT, "\n".join(map(escape.markdown, board.built))] if board.built else []
    return "\n\n".join(paragraphs) + "\n"


def table(made: Sequence[Board]) -> pd.DataFrame:
    """All boards as one table with plain numbers."""
    return (
        pd.concat([board.numbers for board in made], ignore_index=True) if made else pd.DataFrame()
    )


def csv(made: Sequence[Board]) -> str:
    """All boards as one CSV table with plain numbers."""
    return str(table(made).map(escape.csv).to_csv(index=False)) if made else ""
