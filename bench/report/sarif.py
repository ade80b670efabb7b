"""Audits as SARIF 2.1.0, the format of code scanners that CI systems show.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.report.words import attack_label, defense_label
from bench.results.audit import AuditCheck, AuditReport
from bench.results.record import Record

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"fail": "error", "warn": "warning", "pass": "none", "na": "none"}
_KINDS = {"fail": "fail", "warn": "fail", "pass": "pass", "na": "notApplicable"}


def sarif(audited: Sequence[tuple[Path, Record, AuditReport]]) -> dict[str, Any]:
    """One SARIF log with one run: a rule a check, a result a check and record.

    Args:
        audited: the file of each record, the record, and its audit.
    """
    rules: dict[str, AuditCheck] = {}
    for _, _, report in audited:
        for check in report.checks:
            rules.setdefault(check.id, check)
    order = {name: place for place, name in enumerate(rules)}
    results = [
        _result(path, record, report, check, order[check.id])
        for path, record, report in audited
        for check in report.checks
    ]
    driver = {
        "name": "bench audit",
        "version": _version(),
        "rules": [_rule(check) for check in rules.values()],
    }
    run = {"tool": {"driver": driver}, "results": results, "columnKind": "utf16CodeUnits"}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _version() -> str:
    try:
        return version("adversarial-bench")
    except PackageNotFoundError:
        return "unknown"


def _rule(check: AuditCheck) -> dict[str, Any]:
    rule: dict[str, Any] = {"id": check.id, "shortDescription": {"text": check.name}}
    if check.source:
        rule["fullDescription"] = {"text": f"{check.name} ({check.source})"}
    if check.advice:
        rule["help"] = {"text": check.advice}
    return rule


def _result(
    path: Path, record: Record, report: AuditReport, check: AuditCheck, rule: int
) -> dict[str, Any]:
    properties = {
        "verdict": check.verdict,
        "value": check.value,
        "threshold": check.threshold,
        "images": check.images,
        "profile": report.profile,
        "forwards": check.forwards,
        "backwards": check.backwards,
    }
    row = f"{defense_label(record)} under {attack_label(record)}"
    return {
        "ruleId": check.id,
        "ruleIndex": rule,
        "level": _LEVELS[check.verdict],
        "kind": _KINDS[check.verdict],
        "message": {"text": f"{row}: {check.message}"},
        "locations": [
            {"physicalLocation": {"artifactLocation": {"uri": quote(path.as_posix())}}},
        ],
        "partialFingerprints": {"record": record.id, "check": check.id},
        "properties": {
            name: value for name, value in properties.items() if value not in (None, "")
        },
    }
