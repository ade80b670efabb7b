"""The audit as a whole: its list of checks, its profiles, its cost, what it does with a crash."""

import re
from dataclasses import replace

import numpy as np
import pytest

from bench.audit import attack_checks
from bench.audit import audit as whole
from bench.audit.audit import STEPS, audit, scale_for
from bench.audit.catalogue import CHECKS
from bench.audit.limits import FULL, STANDARD
from bench.errors import BadInput
from bench.results.findings import Finding
from tests.audit.helpers import linear, run
from tests.helpers import ROOT


def test_every_check_runs_once_and_has_its_line_in_the_docs():
    ids = [name for step in STEPS for name in step.ids]
    assert len(set(ids)) == len(ids)
    assert {*ids, "P8", "S16"} == set(CHECKS)
    page = (ROOT / "docs/reference/audit.md").read_text()
    table = page.partition("## What each asks")[2].partition("## Where it comes from")[0]
    assert set(re.findall(r"^\| (\w+) \|", table, re.MULTILINE)) == {*CHECKS, "id", "findings"}


def test_quick_reads_the_record_alone(monkeypatch):
    evaluation, record = run(linear())
    found = [
        Finding(name="slopes", verdict="warn", message="one"),
        Finding(name="slopes", verdict="fail", message="two", value=1.0),
        Finding(name="built", verdict="note", message="three"),
    ]
    record = record.model_copy(update={"findings": found})
    monkeypatch.setattr(whole, "build", lambda *_: pytest.fail("built"))
    report = audit(evaluation, record, profile="quick")
    assert report.verdict == "masking-evidence" and report.images == ""
    assert [check.id for check in report.checks] == ["slopes", "P8", "S16"]
    assert report.checks[0].message == "one; two" and report.checks[0].value == 1
    with pytest.raises(BadInput, match="unknown profile"):
        audit(evaluation, record, profile="deep")


def test_a_check_that_crashes_is_told_and_holds_up_no_other(monkeypatch):
    def crash(row):
        raise RuntimeError("broken")
        yield

    evaluation, record = run(linear(), dataset="toy:n=20")
    steps = (
        replace(STEPS[0], run=crash),
        replace(STEPS[0], run=attack_checks.unbounded, ids=("S5",)),
    )
    monkeypatch.setattr(whole, "STEPS", steps)
    report = audit(evaluation, record)
    by_id = {check.id: check for check in report.checks}
    assert by_id["S1"].verdict == "warn" and "RuntimeError" in by_id["S1"].message
    assert by_id["S5"].verdict == "pass" and by_id["S5"].backwards > 0
    assert report.verdict == "inconclusive"


def test_dear_rows_are_audited_on_fewer_images():
    _, record = run(linear())
    assert scale_for(record, STANDARD) == STANDARD
    cost = record.cost.model_copy(update={"max_attack_forwards": 400})
    dear = scale_for(record.model_copy(update={"cost": cost}), FULL)
    assert dear.images < FULL.images / 3 and dear.queries == FULL.queries
    inference = record.inference.model_copy(update={"passes": 30.0})
    slow = scale_for(record.model_copy(update={"inference": inference}), FULL)
    assert slow.images < FULL.images / 9 and slow.queries == FULL.queries / 10


def test_the_passes_of_a_check_are_counted():
    """One step on what is left: two forward passes, one backward, one to verify, one to judge."""
    evaluation, record = run(linear(), attacks=("pgd:steps=2,step=eps/1000,random_start=false",))
    report = audit(evaluation, record)
    left = record.outcomes.correct("adversarial").mean()
    s1 = next(check for check in report.checks if check.id == "S1")
    assert s1.backwards == pytest.approx(left, abs=0.2)
    assert s1.forwards == pytest.approx(4 * left, abs=0.5)
    audited = report.images.replace("-", ",").split(",")
    assert set(map(int, audited)) <= set(np.arange(60))
