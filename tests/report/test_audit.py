"""Audits as a table, as badges and as SARIF."""

from pathlib import Path

import pytest

from bench.report import one_record
from bench.report.audit import as_json, badge, render, render_all
from bench.report.boards.make import boards
from bench.report.rows import rows_table
from bench.report.sarif import sarif
from bench.report.words import audit_of, has_failed
from tests.helpers import run_toys
from tests.results.test_audit import check, report


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audits")
    return run_toys(folder, defenses=("undefended",), attacks=("pgd:steps=5",), n=30)[-1]


def test_the_page_shows_what_speaks_and_counts_the_rest(record):
    made = report(record.id, check("fail", "S6"), check("pass", "S1"), check("na", "S9a"))
    text = render(record, made)
    assert "masking-evidence (standard, 10 images, 1 s)" in text
    assert "| S6" in text and "| S1" not in text and "2 checks passed or do not apply" in text
    assert "no proof" in render_all([(record, made)])
    assert as_json(record, made)["title"]["attack"] == "pgd:steps=5"


def test_badges(record):
    assert badge(None) == ""
    assert badge(report(record.id, check())) == "no-evidence-found"
    assert badge(report(record.id, check("warn"), check("fail", "S6"))) == "masking-evidence (S6)"
    many = report(record.id, *(check("fail", f"S{i}") for i in range(30)))
    assert len(badge(many)) < 70


def test_a_failed_audit_strikes_the_row_out(record):
    plain, doubted, failed = (
        record.with_audit(report(record.id, check(verdict))) for verdict in ("pass", "warn", "fail")
    )
    assert "audit" not in rows_table([record])
    for one, struck in ((plain, False), (doubted, False), (failed, True)):
        assert has_failed([one]) == struck
        assert one.audit.verdict in rows_table([one])
        assert ("~~undefended~~" in rows_table([one])) == struck


def test_sarif_has_what_its_schema_requires(record):
    """The required members of SARIF 2.1.0: log, run, tool, driver, rule, result, message and
    location, and their closed vocabularies.
    """
    made = report(
        record.id, check("fail", "S6"), check("warn", "S2"), check("pass"), check("na", "x")
    )
    log = sarif([(Path("a folder/r.json"), record, made), (Path("b.json"), record, made)])
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-2.1.0.json")
    assert set(log) == {"$schema", "version", "runs"} and len(log["runs"]) == 1
    run = log["runs"][0]
    driver = run["tool"]["driver"]
    assert driver["name"] and run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
    rules = driver["rules"]
    ids = [rule["id"] for rule in rules]
    assert len(set(ids)) == len(ids) == 4
    assert all(rule["shortDescription"]["text"] for rule in rules)
    assert len(run["results"]) == 8
    for result in run["results"]:
        assert result["message"]["text"]
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["kind"] in (
            "notApplicable",
            "pass",
            "fail",
            "review",
            "open",
            "informational",
        )
        # A result that is no failure has no level.
        assert (result["level"] == "none") == (result["kind"] != "fail")
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert " " not in uri
        assert all(isinstance(v, str) for v in result["partialFingerprints"].values())
    levels = {result["ruleId"]: result["level"] for result in run["results"]}
    assert levels == {"S6": "error", "S2": "warning", "S1": "none", "x": "none"}


def test_boards_take_the_audit_of_the_strongest_attack(tmp_path):
    row = {"defenses": ("undefended",), "n": 30, "eps": 0.004}
    weak, strong = (
        run_toys(tmp_path, attacks=(f"pgd:steps=5,step={step},random_start=false",), **row)[-1]
        for step in ("eps/1000", "eps/4")
    )
    assert weak.metrics.adversarial.mean.value > strong.metrics.adversarial.mean.value
    weak = weak.with_audit(report(weak.id, check("fail", "S2")))
    strong = strong.with_audit(report(strong.id, check("warn", "S3")))
    board = boards([weak, strong])[0]
    (row,) = board.rows
    assert row.audit.state == "inconclusive" and [one.id for one in row.audit.spoke] == ["S3"]
    assert row.unranked.startswith("incomplete") and "`audit`" in board.note
    # Of attacks that leave the same any that was audited.
    bare = strong.with_audit(None).model_copy(update={"id": "0" * 16})
    assert audit_of([bare, strong]) == audit_of([strong, bare]) == strong.audit
    assert audit_of([bare, weak]) is None
    (alone,) = boards([weak])[0].rows
    assert alone.unranked == "failed a check" and alone.builds[0].failed
    shown = one_record.render(one_record.under_every_rule(weak))
    assert "audit (standard): masking-evidence\n- fail S2: seen" in shown
