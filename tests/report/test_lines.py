"""Every published row has its evaluation in a suite, or a reason why it has none."""

import csv
import tomllib
from itertools import product

import pytest

from bench.engine.request import read_suite
from bench.spec import read_number
from tests.helpers import ROOT

REFERENCE = ROOT / "leaderboards" / "reference"
SUITES = ROOT / "leaderboards" / "suites"
WORDS = ("dataset", "classifier", "defense", "attack", "norm", "eps")
COLUMNS = ("source", "table", "architecture", "protocol", "metric", *WORDS)


def fits(rule, row):
    """Whether all words of a rule are those of the row."""
    conditions = [(column, rule[column]) for column in COLUMNS if column in rule]
    return all(
        any(_is(text, row[column]) for text in (given if isinstance(given, list) else [given]))
        for column, given in conditions
    )


def _is(text, value):
    return value.startswith(text[:-1]) if text.endswith("*") else value == text


def line(row, rules):
    """What the rules say of a row: a reason, or the words of an evaluation."""
    told = [rule for rule in rules if fits(rule, row)]
    reason = next((rule["not"] for rule in told if "not" in rule), "")
    runs = {}
    for rule in reversed(told):
        runs |= rule.get("runs", {})
    stated = {key: row[key] for key in ("norm", "eps") if row[key]}
    return reason, stated | {key: runs[key] for key in WORDS if key in runs}


def planned(request):
    """The words of a request's evaluations; it states all of them."""
    matrix = (
        request.datasets,
        request.classifiers,
        request.defenses,
        request.attacks,
        request.norms or ("linf",),
        map(float, request.epsilons),
    )
    return product(*matrix)


@pytest.fixture(scope="module")
def rules():
    return tomllib.loads((REFERENCE / "lines.toml").read_text())["rule"]


@pytest.fixture(scope="module")
def rows():
    return [
        (f"{path.name}, line {number}", row)
        for path in sorted(REFERENCE.glob("*.csv"))
        for number, row in enumerate(csv.DictReader(path.open()), 2)
    ]


@pytest.fixture(scope="module")
def evaluations():
    suites = [path for path in SUITES.glob("published-*.toml") if path.stem != "published-nets"]
    return {one for path in suites for request in read_suite(path) for one in planned(request)}


def test_every_published_row_has_a_line_or_a_reason(rules, rows, evaluations):
    clean = {one[:3] for one in evaluations}
    for where, row in rows:
        reason, words = line(row, rules)
        if reason:
            continue
        kind = tuple(words.get(key) for key in WORDS[:3])
        if row["attack"] == "none":
            assert kind in clean, f"{where}: no suite runs {kind}"
            continue
        lacking = [key for key in WORDS if key not in words]
        assert not lacking, f"{where}: lines.toml gives no {', '.join(lacking)}"
        wanted = (*kind, words["attack"], words["norm"], float(read_number(words["eps"])))
        assert wanted in evaluations, f"{where}: no suite runs {wanted}"


def test_no_rule_is_idle(rules, rows):
    for rule in rules:
        assert any(fits(rule, row) for _, row in rows), f"no row is meant by {rule}"
