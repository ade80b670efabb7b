"""`bench audit` on records and on evaluations: audit, store beside the record, print."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.audit.audit import audit
from bench.commands.elsewhere import answers_elsewhere
from bench.commands.rescoring import read_sidecar
from bench.commands.trust import check_trusted, of_python
from bench.commands.verify import attacked, rebuild
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.engine.run import Result
from bench.errors import BadInput
from bench.report.audit import as_json, render_all
from bench.report.grouping import by_setup, defense_key
from bench.report.sarif import sarif
from bench.results.audit import PROFILES, AuditReport, Profile
from bench.results.record import Record
from bench.results.store import Store, read_bare_record, read_record

FORMATS = ("table", "json", "sarif")


@dataclass(frozen=True)
class AuditRequest:
    """How to audit.

    Attributes:
        profile: how much is checked.
        execution: how to compute.
        trust: run `FILE.py@NAME` of a record wherever that file is.
        again: whether a stored audit that is as deep is made again.
        progress: called with a line before each check.
    """

    profile: Profile
    execution: Execution
    trust: bool = False
    again: bool = False
    progress: Callable[[str], None] | None = None


@dataclass(frozen=True)
class AuditedRecord:
    """What became of one record: its audit, or why there is none."""

    path: Path
    record: Record | None = None
    report: AuditReport | None = None
    refused: BadInput | None = None


def audit_files(paths: Sequence[Path], request: AuditRequest) -> Iterator[AuditedRecord]:
    """Audit records one after the other; one that cannot be audited holds up no other."""
    read: dict[Path, Record | BadInput] = {}
    for path in paths:
        try:
            read[path] = read_bare_record(path)
        except BadInput as error:
            read[path] = error
    records = [one for one in read.values() if isinstance(one, Record)]
    for path, record in read.items():
        if isinstance(record, BadInput):
            yield AuditedRecord(path, refused=record)
            continue
        try:
            stored = _stored(path, request)
            if stored:
                yield AuditedRecord(path, record, stored)
                continue
            if not request.trust:
                check_trusted(record)
            yield _audited(path, record, rebuild(record), records, request)
        except BadInput as error:
            yield AuditedRecord(path, record, refused=error)


def audit_results(results: Iterable[Result], request: AuditRequest) -> Iterator[AuditedRecord]:
    """Audit evaluations that have just been run."""
    done = [(one.path, one.record, one.evaluation) for one in results if one.path and one.record]
    records = [record for _, record, _ in done]
    for path, record, evaluation in done:
        try:
            stored = _stored(path, request)
            if stored:
                yield AuditedRecord(path, record, stored)
                continue
            yield _audited(path, record, evaluation, records, request)
        except BadInput as error:
            yield AuditedRecord(path, record, refused=error)


def _stored(path: Path, request: AuditRequest) -> AuditReport | None:
    """The audit that lies beside a record, where it is at least as deep as what is asked for; a
    damaged one counts as none.
    """
    if request.again:
        return None
    try:
        report = read_record(path).audit
    except BadInput:
        return None
    deep = report is not None and PROFILES.index(report.profile) >= PROFILES.index(request.profile)
    return report if deep else None


def _audited(
    path: Path,
    record: Record,
    evaluation: Evaluation,
    records: Sequence[Record],
    request: AuditRequest,
) -> AuditedRecord:
    store = Store(path.parent)
    # An audit that was made is kept: nothing is computed for a folder that takes no file.
    store.check_writable()
    sidecar = read_sidecar(record, evaluation, store)

    def tell(check: str) -> None:
        if request.progress:
            request.progress(f"{path.name}: {check}")

    elsewhere = partial(answers_elsewhere, record, path, request.execution)
    report = audit(
        evaluation,
        record,
        request.execution,
        profile=request.profile,
        points=sidecar.points if sidecar else None,
        others=[one for one in records if _is_beside(one, record)],
        progress=tell,
        elsewhere=None if of_python(record) else elsewhere,
        make=lambda: attacked(record, evaluation, path, request.execution.device),
    )
    store.save_audit(report, path)
    return AuditedRecord(path, record, report)


def _is_beside(one: Record, record: Record) -> bool:
    """Whether two records are of one defense on one setup."""
    return defense_key(one) == defense_key(record) and len(by_setup([one, record])) == 1


def printed(audited: Sequence[AuditedRecord], form: str) -> str:
    """Audits as text of a format."""
    whole = [(one.path, one.record, one.report) for one in audited if one.record and one.report]
    if form == "sarif":
        return json.dumps(sarif(whole), indent=1)
    if form == "json":
        return json.dumps([as_json(record, report) for _, record, report in whole], indent=1)
    return render_all([(record, report) for _, record, report in whole])


def check_format(form: str) -> str:
    """Raises `BadInput` for an unknown format of audits of records."""
    if form not in FORMATS:
        raise BadInput(f"unknown format {form!r}: use {', '.join(FORMATS)}")
    return form
