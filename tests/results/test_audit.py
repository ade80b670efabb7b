"""Audits as data: the verdict follows from the checks; the file lies beside the record's."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from bench.errors import BadInput
from bench.results.audit import AuditCheck, AuditReport, read_profile, verdict_of
from bench.results.extra import ExtraPoints
from bench.results.store import Store, audit_path, files_below, read_all, read_record
from tests.helpers import run_toys


def check(verdict="pass", name="S1") -> AuditCheck:
    return AuditCheck(id=name, name="a check", verdict=verdict, message="seen")


def report(of: str, *checks: AuditCheck, **fields) -> AuditReport:
    values = {
        "record": of,
        "profile": "standard",
        "verdict": verdict_of(checks),
        "images": "0-9",
        "checks": list(checks),
        "seconds": 1.0,
        "finished": "2026-01-01T00:00:00+00:00",
        **fields,
    }
    return AuditReport(**values)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audits")
    record = run_toys(folder, defenses=("undefended",), attacks=("pgd:steps=5",), n=30, eps=0.004)[
        -1
    ]
    return Store(folder), record, folder / f"{record.stem}.json"


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["pass", "na"], "no-evidence-found"),
        (["pass", "warn"], "inconclusive"),
        (["warn", "fail", "pass"], "masking-evidence"),
        ([], "no-evidence-found"),
    ],
)
def test_the_worst_check_decides(verdicts, whole):
    assert verdict_of(check(one) for one in verdicts) == whole


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"verdict": "no-evidence-found"}, "does not follow"),
        ({"images": "all"}, "of the form"),
        ({"record": "abc"}, "pattern"),
        ({"profile": "thorough"}, "standard"),
        ({"finished": "yesterday"}, "isoformat"),
        ({"checks": [check("fail"), check("fail")]}, "one id"),
        ({"seconds": -1.0}, "greater"),
        ({"more": 1}, "Extra"),
    ],
)
def test_an_audit_that_contradicts_itself_is_refused(fields, why):
    with pytest.raises(ValidationError, match=why):
        report("0" * 16, check("fail"), **fields)


def test_an_audit_is_read_with_its_record_and_is_no_record(stored):
    store, record, path = stored
    assert read_record(path).audit is None
    saved = store.save_audit(report(record.id, check("warn")), path)
    assert saved == audit_path(path) and files_below(store.folder) == [path]
    for read in (read_record(path), store.find(record.id), read_all([store.folder])[0][0]):
        assert read.audit.verdict == "inconclusive"
    # The record's own file says nothing of it.
    assert "audit" not in json.loads(path.read_text())
    assert read_record(path).with_audit(None) == record
    saved.unlink()


def test_its_points_are_an_attack_of_their_own(stored):
    store, record, path = stored
    left = np.flatnonzero(record.outcomes.correct("adversarial")[:, 0])
    ids, labels = record.outcomes.image_ids()[left[:2]], record.outcomes.true_labels()[left[:2]]
    points = ExtraPoints.of(
        "audit", 3, ids, ((labels + np.array([1, 0])) % 3)[:, None], ["S6", "-"]
    )
    store.save_audit(report(record.id, check("warn"), extra=[points]), path)
    again = read_record(path).extra_correct()
    assert "audit" not in record.extra_correct()
    differ = again["audit"][:, 0] != record.outcomes.correct("adversarial")[:, 0]
    assert np.flatnonzero(differ).tolist() == [left[0]]
    audit_path(path).unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"record": "f" * 16}, "audit of ffff"),
        ({"images": "0-99"}, "more images"),
        ({"images": "500-505"}, "does not have"),
        ({"verdict": "inconclusive"}, "does not follow"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_an_audit_of_something_else_is_told_and_costs_no_record(stored, change, why):
    store, record, path = stored
    content = report(record.id, check("fail")).model_dump(mode="json")
    audit_path(path).write_text(json.dumps({**content, **change}))
    with pytest.raises(BadInput, match=why) as caught:
        read_record(path)
    assert "bench audit" in str(caught.value)
    # A damaged audit must not make a run compute its evaluation again.
    assert store.find(record.id) == record
    audit_path(path).unlink()


def test_profiles_by_name():
    assert read_profile("quick") == "quick"
    with pytest.raises(BadInput, match="standard"):
        read_profile("deep")
