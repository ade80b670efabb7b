"""The gallery holds the attacks to the known answers."""

from pathlib import Path

import pytest

from bench.commands.gallery import BROKEN, Row, evaluations_of, exhibits, rows, verdict
from bench.defense import Card
from bench.engine.execution import Execution
from bench.engine.request import Request
from bench.engine.run import run_evaluations
from bench.errors import BadInput
from bench.results.store import Store
from tests.defenses.gallery.helpers import NAMES
from tests.helpers import run_toys

TOYS = Path(__file__).with_name("toy_answers.py")


def shown(tmp_path, *names, n=20, naive="pgd"):
    shown_ones = exhibits(Request(defense=names, n=n), naive)
    results = list(run_evaluations(evaluations_of(shown_ones), Store(tmp_path), Execution()))
    return {row.defense: row for row in rows(shown_ones, results)}


def test_masked_defenses_look_robust_and_are_broken(tmp_path):
    names = ("bit-depth", "gradient-killer", "jpeg", "one-hot", "shattered-gradient", "temperature")
    table = shown(tmp_path, *names)
    for name in names:
        row = table[name]
        assert row.verdict == "broken" and row.held
        assert float(row.naive) >= float(row.naive_base) + 5, (
            f"{name} masks nothing from the naive attack"
        )
        assert float(row.fitting) <= float(row.base) + 5
    assert all("zero-gradient" in table[name].audit for name in set(names) - {"shattered-gradient"})


def test_a_constant_class_keeps_its_share(tmp_path):
    row = shown(tmp_path, "constant", n=100)["constant"]
    assert (row.clean, row.naive, row.fitting, row.verdict) == ("10.0", "10.0", "10.0", "broken")
    assert "COLLAPSED" in row.audit


def test_a_defense_that_survives_is_named(tmp_path):
    names = [f"{TOYS}@{name}" for name in ("Overrated", "Unfinished", "Untrue")]
    table = shown(tmp_path, *names, n=10)
    overrated, unfinished, untrue = (table[name] for name in names)
    assert untrue.verdict == "no number: forward-pass failed" and not untrue.held
    assert overrated.verdict == "no number: base-points failed" and not overrated.held
    assert unfinished.verdict == "not measured: not here" and not unfinished.held


def test_a_number_above_the_known_answer_is_named(tmp_path):
    base, row = run_toys(tmp_path, defenses=("toy-jitter",), attacks=("null",), dataset="toy:n=12")
    constant = verdict(Card(expected="share"), row, base)
    assert constant.startswith("survives: ") and "points above its share" in constant
    assert verdict(Card(expected="base"), base, base) == BROKEN
    assert verdict(Card(expected="unknown"), row, base) == ""


@pytest.mark.parametrize("verdict", ["not measured: it crashed", "no number: forward-pass failed"])
def test_what_was_not_measured_has_not_held(verdict):
    assert not any(
        Row("it", expected=expected, verdict=verdict).held
        for expected in ("base", "share", "unknown")
    )
    assert Row("it", expected="unknown").held


@pytest.mark.parametrize(
    ("options", "naive", "said"),
    [
        ({"norm": "l2"}, "pgd", "no default eps under l2"),
        ({"n": 0}, "pgd", "n is 0"),
        ({}, "no-such-attack", "unknown attack"),
    ],
)
def test_what_would_prove_nothing_is_refused(options, naive, said):
    with pytest.raises(BadInput, match=said):
        exhibits(Request(defense=("jpeg",), **options), naive)


def test_only_known_answers_are_shown():
    assert "undefended" not in NAMES and {"jpeg", "random-resize", "k-wta", "constant"} <= set(
        NAMES
    )
    with pytest.raises(BadInput, match="has no known answer"):
        exhibits(Request(defense=("undefended",)), "pgd")


@pytest.mark.slow
def test_the_whole_gallery_is_broken(tmp_path):
    table = shown(tmp_path, *NAMES, n=100)
    assert {name: row.verdict for name, row in table.items() if not row.held} == {}
    assert [name for name, row in table.items() if not row.verdict] == ["k-wta", "thermometer"]
