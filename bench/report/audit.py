"""Audits of records as a table, as JSON and as badges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.report import escape
from bench.report.tables import markdown_rows
from bench.report.words import attack_label, defense_label, heading
from bench.results.audit import AuditReport
from bench.results.outcomes import count_ids
from bench.results.record import Record

NOTE = (
    "masking-evidence: a check failed, do not believe the number. inconclusive: a check doubts it. "
    "no-evidence-found: no check spoke; that is no proof."
)
_SHOWN = 60


def render(record: Record, report: AuditReport) -> str:
    """One audit as plain text: its verdict, and the checks that speak."""
    shown = [*report.failed, *report.warned]
    quiet = len(report.checks) - len(shown)
    images = f", {count_ids(report.images)} images" if report.images else ""
    lines = [
        f"{defense_label(record)} under {attack_label(record)}, {heading(record)}",
        f"{report.verdict} ({report.profile}{images}, {report.seconds:.0f} s)",
    ]
    rows = [
        {
            "check": check.id,
            "verdict": check.verdict,
            "seen": check.message,
            "what to do": check.advice,
            "passes/image": f"{check.forwards:.0f}F {check.backwards:.0f}B"
            if check.forwards or check.backwards
            else "",
        }
        for check in shown
    ]
    parts = ["\n".join(map(escape.terminal, lines))]
    parts += [markdown_rows(rows)] if rows else []
    parts += [f"{quiet} checks passed or do not apply"] if quiet else []
    joined = sum(count_ids(extra.ids) for extra in report.extra)
    if joined:
        parts.append(f"{joined} images that the row's attack left join the worst case as broken")
    return "\n".join(parts)


def render_all(audited: Sequence[tuple[Record, AuditReport]]) -> str:
    """Several audits, and what the verdicts mean."""
    return "\n\n".join([*(render(record, report) for record, report in audited), NOTE])


def as_json(record: Record, report: AuditReport) -> dict[str, Any]:
    """One audit with the titles of its record."""
    return {"title": dict(record.title), **report.model_dump(mode="json")}


def badge(report: AuditReport | None) -> str:
    """A verdict and the checks behind it, for a cell of a table; empty without an audit."""
    if report is None:
        return ""
    checks = report.failed or report.warned
    text = f"{report.verdict} ({', '.join(check.id for check in checks)})" if checks else ""
    return text[:_SHOWN].rstrip() + ("..." if len(text) > _SHOWN else "") or report.verdict
