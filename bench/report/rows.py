"""The table of `bench run`: one row a record."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.audit import badge
from bench.report.escape import markdown as escaped
from bench.report.grouping import by_defense, by_setup, defense_key, defense_names
from bench.report.notes import column_notes
from bench.report.tables import markdown_rows, percent
from bench.report.words import (
    BUILT,
    attack_label,
    built_lines,
    detector_rates,
    failure_label,
    flags,
    has_failed,
    heading,
    median_distance,
    stages_line,
    struck_through,
    targets_reached,
)
from bench.results.intervals import share
from bench.results.record import Failure, Record
from bench.results.views import any_right


def rows_table(records: Sequence[Record], failures: Sequence[Failure] = ()) -> str:
    """One row a record in Markdown, a table for each setup; failures below, as errors and not as
    numbers.
    """
    bases = {record.id: record for record in records}
    with_seed = len({record.title["seed"] for record in records}) > 1
    paragraphs = []
    for group in by_setup(records):
        paragraphs += _section(group, bases, with_seed)
    paragraphs += [escaped(failure_label(failure)) for failure in failures]
    return "\n\n".join([*paragraphs, column_notes(records)])


def _section(group: Sequence[Record], bases: dict[str, Record], with_seed: bool) -> list[str]:
    """The table of one setup, and what is said below it."""
    defenses = by_defense(group)
    names = dict(
        zip((defense_key(one[0]) for one in defenses), defense_names(defenses), strict=True)
    )
    named = [(names[defense_key(record)], record) for record in group]
    rows = [
        {
            "defense": struck_through(name, has_failed([record])),
            **_row(record, bases.get(record.base), with_seed),
        }
        for name, record in named
    ]
    constant = f"a constant answer gets {percent(group[0].metrics.constant_accuracy)}"
    table = markdown_rows(rows)
    paragraphs = [f"{escaped(heading(group[0]))}, {constant}\n\n{table}"]
    staged = [
        escaped(stages_line(record))
        for record in group
        if record.stages and len(record.stages.names) > 1
    ]
    if staged:
        paragraphs.append(
            "Left unbroken by each stage, in the attack's own view:\n" + "\n".join(staged)
        )
    built = built_lines(named)
    if built:
        paragraphs.append(BUILT + "\n" + "\n".join(map(escaped, built)))
    return paragraphs


def _row(record: Record, base: Record | None, with_seed: bool) -> dict[str, str]:
    clean, attacked, replayed = (
        record.metrics.clean,
        record.metrics.adversarial,
        record.metrics.replayed,
    )
    all_draws = f"{percent(clean.all_draws.value)} -> {percent(attacked.all_draws.value)}"
    any_view = any_right(record.views, record.outcomes) if record.views else None
    return {
        "attack": attack_label(record),
        "seed": record.title["seed"] if with_seed else "",
        "clean": str(clean.mean),
        "robust": str(attacked.mean),
        "target reached": targets_reached(record),
        "median distance": median_distance(record),
        "replayed": str(replayed.mean) if replayed else "",
        "all draws": all_draws if record.stochastic else "",
        "base": percent(base.metrics.adversarial.mean.value) if base else "",
        "any view": "" if any_view is None else str(share(any_view.astype(float))),
        "detector": detector_rates(record),
        "macro-F1": f"{percent(clean.macro_f1.value)} -> {percent(attacked.macro_f1.value)}",
        "passes/image": f"{record.cost.attack_forwards:.1f}F {record.cost.attack_backwards:.1f}B",
        "audit": badge(record.audit),
        "flags": ", ".join(flags([record])),
    }
