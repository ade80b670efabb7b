"""`bench audit` of published tables: which numbers cannot be, contradict each other, or mean less
than they seem to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict

from bench.audit.cells import read_cells
from bench.audit.table_checks import CHECKS
from bench.audit.table_findings import TableFinding
from bench.report import escape


class TableAudit(BaseModel):
    """What was found in published tables.

    Attributes:
        numbers: how many accuracies were looked at, each once.
        checks: what was looked for.
        findings: in the order of the checks and of the tables.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    numbers: int
    checks: tuple[str, ...]
    findings: tuple[TableFinding, ...]

    @property
    def failed(self) -> bool:
        return any(finding.verdict == "fail" for finding in self.findings)


def audit_tables(places: Sequence[Path]) -> TableAudit:
    """Audit CSV files of published numbers and folders of them. Raises `BadInput` naming file, line
    and column of what does not fit.
    """
    cells = read_cells(places)
    findings = [finding for check in CHECKS.values() for finding in check(cells)]
    return TableAudit(numbers=len(cells), checks=tuple(CHECKS), findings=tuple(findings))


def as_markdown(audit: TableAudit) -> str:
    """The findings as lists, one a check, each with what would settle it."""
    failed = sum(finding.verdict == "fail" for finding in audit.findings)
    head = (
        f"{audit.numbers} published accuracies, {len(audit.checks)} checks: {failed} failed, "
        f"{len(audit.findings) - failed} warnings."
    )
    by_check = {check: [f for f in audit.findings if f.check == check] for check in audit.checks}
    return "\n\n".join([head, *(_section(found) for found in by_check.values() if found)])


def _section(findings: Sequence[TableFinding]) -> str:
    lines = [f"**{findings[0].check}**. To settle it: {findings[0].advice}.", ""]
    for finding in findings:
        where = ", ".join(filter(None, [finding.source, finding.table]))
        ends = [where, _folded(finding.rows), ", ".join(finding.badges)]
        text = f"{finding.case}: {finding.message} ({'; '.join(filter(None, ends))})"
        lines.append(f"- {finding.verdict.upper()} {escape.markdown(text)}")
    return "\n".join(lines)


def _folded(rows: Sequence[str]) -> str:
    """`a.csv lines 3, 4; b.csv line 9`."""
    by_file: dict[str, list[str]] = {}
    for row in rows:
        file, _, line = row.rpartition(":")
        by_file.setdefault(file, []).append(line)
    return "; ".join(
        f"{file} line{'s' * (len(lines) > 1)} {', '.join(sorted(lines, key=int))}"
        for file, lines in by_file.items()
    )


def as_json(audit: TableAudit) -> str:
    """All that was looked for and found."""
    return audit.model_dump_json(indent=1)


def as_csv(audit: TableAudit) -> str:
    """One line a finding."""
    rows = []
    for finding in audit.findings:
        row = finding.model_dump()
        for name in ("attacks", "rows", "badges"):
            row[name] = "; ".join(row[name])
        row["counts"] = "; ".join(str(count) for count in finding.counts)
        row["images"] = "" if finding.images is None else str(finding.images)
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(TableFinding.model_fields))
    return str(table.map(escape.csv).to_csv(index=False))
