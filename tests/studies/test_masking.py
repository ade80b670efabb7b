"""The study `masking`."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bench_defenses.masking.catalogue import Masking as Catalogue

from bench.errors import BadInput
from bench.studies import masking, masking_tables
from bench.studies.cases import HALVES, Case, halves
from bench.studies.masking_tables import Measured, Signal
from bench.studies.study import StudySetting
from tests.helpers import ROOT
from tests.studies.helpers import study
from tests.toys import message

CATALOGUE = '''
"""Three modules around a network: one has no gradient, one is honest, one does not run."""
import torch
from bench.studies.cases import Case, Catalogue, Place

HERE = Place("mnist5k", "zoo:mnist5k-cnn", 0.1, 12)


class Blocked(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def see_through(self):
        return self.net

    def forward(self, x):
        return self.net(x.detach())


class Broken(Blocked):
    def forward(self, x):
        if x.requires_grad:
            raise ValueError("no answer")
        return self.net(x)


class Mine(Catalogue):
    def cases(self):
        make = lambda kind: lambda setup: kind(setup.classifier)
        return (
            Case("blocked", "blocking", "detaches", True, make=make(Blocked), place=HERE),
            Case("plain", "nets", "nothing", False, place=HERE),
            Case("broken", "broken", "fails", True, make=make(Broken), place=HERE),
            Case("noisy", "nets", "", False, defense="gaussian-noise", fitting="pgd", place=HERE),
        )
'''


def case(name, masked=True, half="settled", robust=0.9, signals=(), refused="", passes=8.0):
    kind = Case(name, f"kind-{name}", "hides", masked)
    return Measured(kind, half, 0.1, 0.95, robust, refused, tuple(signals), 40.0, {"quick": passes})


def signal(verdict, check="slopes", value=None, threshold=None, profile="quick"):
    return Signal(profile, check, verdict, value, threshold)


def test_a_small_catalogue_is_measured(tmp_path):
    (tmp_path / "mine.py").write_text(CATALOGUE)
    plugin = study(f"masking:catalogue={tmp_path / 'mine.py'}@Mine,profile=quick")
    result = plugin.run(StudySetting())
    rows = result.tables["cases"].set_index("case")
    assert rows.loc["blocked", "measured"] == "masked" and rows.loc["plain", "measured"] == "ok"
    assert rows.loc["blocked", "robust"] > rows.loc["blocked", "truth"] + 0.1
    assert (
        rows.loc["broken", "measured"] == "refused" and "no answer" in rows.loc["broken", "refused"]
    )
    assert rows.loc["noisy", "truth"] == rows.loc["noisy", "robust"]
    assert np.isnan(rows.loc["broken", "robust"]) and "refused a number: broken" in result.sentence
    assert set(result.tables) == {"profiles", "checks", "roc", "cases", "signals"}
    assert plugin.sources(StudySetting())["catalogue"]


def test_masked_is_what_is_reported_ten_points_above_the_truth():
    assert case("a", robust=0.2).masked and not case("a", robust=0.19).masked
    assert not case("a", robust=0.9, refused="no number").masked


def test_a_right_number_of_an_attack_without_gradient_is_void():
    flat = case("a", robust=0.1, signals=[signal("warn", "flat-gradient"), signal("fail")])
    assert flat.measured == "void" and case("b", robust=0.1).measured == "ok"
    assert case("c", signals=[signal("warn", "flat-gradient")]).measured == "masked"
    table = masking_tables.profile_table([flat, case("d")])
    assert table["false_alarms_of"].tolist() == [0]
    assert "void: a" in masking_tables.sentence([flat, case("d")])


def test_a_case_is_found_by_a_failure_of_its_profile_or_a_cheaper_one():
    warned = case("a", signals=[signal("warn"), signal("pass", profile="standard")])
    later = case("a", signals=[signal("warn"), signal("fail", "S6", profile="standard")])
    at_once = case("a", signals=[signal("fail")])
    assert [one.found("quick") for one in (warned, later, at_once)] == [False, False, True]
    assert [one.found("standard") for one in (warned, later, at_once)] == [False, True, True]


def test_recall_counts_masked_cases_and_false_alarms_the_others():
    measured = [
        case("a", signals=[signal("fail")]),
        case("b"),
        case("c", masked=False, robust=0.1, signals=[signal("fail")]),
        case("d", robust=0.15),
        case("e", refused="no number", signals=[signal("fail", "refused")]),
        case("f", half="unseen", signals=[signal("fail")]),
    ]
    table = masking_tables.profile_table(measured).set_index("half")
    assert list(table.index) == ["settled", "unseen", "both"]
    assert table.loc["settled", ["recall_count", "recall_of"]].tolist() == [1, 2]
    assert table.loc["settled", ["false_alarms_count", "false_alarms_of"]].tolist() == [1, 2]
    assert table.loc["unseen", "recall"] == 1 and np.isnan(table.loc["unseen", "false_alarms"])
    assert table.loc["both", "recall_of"] == 3 and table.loc["both", "passes"] == 8
    checks = masking_tables.check_table(measured).set_index(["check", "half"])
    assert checks.loc[("slopes", "both"), ["fails_masked", "fails_others"]].tolist() == [2, 1]
    assert masking_tables.held(measured) is False, "an honest case was accused"
    assert masking_tables.held([measured[0], measured[5]]) is True
    assert masking_tables.held([case("f", half="unseen")]) is False
    assert masking_tables.held([measured[0]]) is None


@pytest.mark.parametrize(("side", "word"), [(1, "above"), (-1, "below")])
def test_the_roc_moves_the_threshold_on_the_suspicious_side(side, word):
    """Values 4, 3, 1 of masked cases and 2, 0 of others, the threshold at 2.5."""
    measured = [
        case(
            f"m{value}",
            signals=[signal("fail" if value > 2.5 else "pass", "S", side * value, side * 2.5)],
        )
        for value in (4, 3, 1)
    ] + [
        case(
            f"o{value}",
            masked=False,
            robust=0.1,
            signals=[signal("pass", "S", side * value, side * 2.5)],
        )
        for value in (2, 0)
    ]
    table = masking_tables.roc_table(measured)
    moved = table[~table["default"]].to_dict("records")
    got = {side * row["threshold"]: (row["recall"], row["false_alarms"]) for row in moved}
    third = pytest.approx(1 / 3), pytest.approx(2 / 3)
    assert got == {
        4: (third[0], 0),
        3: (third[1], 0),
        2: (third[1], 0.5),
        1: (1, 0.5),
        0: (1, 1),
    }
    assert table[table["default"]][["recall", "false_alarms"]].values.tolist() == [[third[1], 0]]
    assert table[table["default"]]["threshold"].tolist() == [side * 2.5]


def test_a_check_that_spoke_of_nobody_has_no_side():
    measured = [case("a", signals=[signal("pass", "S", 1.0, 2.0)])]
    assert masking_tables.roc_table(measured).empty


def test_halves_are_decided_by_the_alphabet():
    cases = [
        Case(kind, kind, "", masked)
        for kind, masked in (("c", True), ("a", True), ("b", True), ("z", False), ("y", False))
    ]
    assert halves(cases) == {
        "a": "settled", "b": "unseen", "c": "settled", "y": "settled", "z": "unseen"
    }  # fmt: skip


def test_cases_are_chosen_by_name_and_kind():
    chosen = masking.chosen_cases(study("masking:cases=output+grid-flat").params)
    assert {one.kind for one, _ in chosen} == {"output", "grid"}
    assert len([one for one, _ in chosen if one.kind == "grid"]) == 1
    assert not any(one.published for one, _ in masking.chosen_cases(study("masking").params))
    told = message(lambda: masking.chosen_cases(study("masking:cases=nobody").params))
    assert "nobody" in told
    told = message(lambda: masking.chosen_cases(study("masking:cases=certified").params))
    assert "published=true" in told
    with pytest.raises(BadInput):
        masking.chosen_cases(study("masking:catalogue=nothing").params)


def test_what_is_kept_of_a_case_is_read_back():
    measured = case("a", signals=[signal("fail", value=1.5, threshold=1.0), signal("pass")])
    assert Measured.from_json(measured.to_json(), measured.case) == measured
    refused = case("b", robust=float("nan"), refused="no number")
    again = Measured.from_json(refused.to_json(), refused.case)
    assert np.isnan(again.robust) and again.refused == "no number"


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CATALOGUE)
    text = f"masking:catalogue={tmp_path / 'mine.py'}@Mine,cases=plain,profile=quick"
    first = study(text).run(StudySetting()).tables["cases"]
    monkeypatch.setattr(masking, "measure", lambda *_: pytest.fail("measured again"))
    assert study(text).run(StudySetting()).tables["cases"].equals(first)


def test_a_number_that_is_struck_out_is_not_audited(monkeypatch):
    asked = []

    def ran(*_):
        from bench.results.findings import Finding

        metrics = SimpleNamespace(
            clean=SimpleNamespace(mean=SimpleNamespace(value=1.0)),
            adversarial=SimpleNamespace(mean=SimpleNamespace(value=0.5)),
        )
        cost = SimpleNamespace(
            attack_forwards=1, attack_backwards=1, check_forwards=1, check_backwards=0
        )
        findings = [Finding(name="slopes", verdict=verdict, message="x")]
        return None, SimpleNamespace(
            record=SimpleNamespace(findings=findings, cost=cost, metrics=metrics)
        )

    monkeypatch.setattr(masking, "_truth", lambda *_: 0.1)
    monkeypatch.setattr(masking, "_run", ran)
    monkeypatch.setattr(masking, "_audited", lambda *_: asked.append(1) or ([], 5.0))
    one = Case("a", "kind", "", True)
    for verdict, profile, times in (  # noqa: B007
        ("fail", "standard", 0),
        ("warn", "quick", 0),
        ("warn", "standard", 1),
    ):
        masking.measure(one, "settled", None, 0, profile)
        assert len(asked) == times


# The committed result -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed():
    """The tables of the committed study, by name."""
    (folder,) = (ROOT / "leaderboards" / "studies" / "masking").iterdir()
    return {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}


def test_the_committed_cases_are_those_of_the_catalogue(committed):
    table = committed["cases"].set_index("case")
    known = {one.name: one for one in Catalogue().cases()}
    assert set(table.index) <= set(known)
    half_of = halves(known.values())
    for name, row in table.iterrows():
        assert (row["kind"], row["half"]) == (known[name].kind, half_of[known[name].kind])
        assert row["meant"] == ("masked" if known[name].masked else "control")
        above = row["robust"] >= row["truth"] + 0.1 - 1e-9
        assert row["measured"] in (["masked"] if above else ["ok", "void"])
    masked = table[table["measured"] == "masked"]
    assert len(table) >= 60 and len(masked) >= 44 and masked["kind"].nunique() >= 12
    for half in HALVES:
        assert len(table[(table["measured"] == "ok") & (table["half"] == half)]) >= 10


def test_the_committed_result_finds_what_hides_and_accuses_nobody(committed):
    table = committed["profiles"].set_index(["profile", "half"])
    assert table.loc[("standard", "unseen"), "recall"] >= 0.95
    assert table.loc[("standard", "both"), "false_alarms_count"] == 0
    assert table.loc[("standard", "both"), "false_alarms_of"] >= 20
    failed = committed["cases"]["quick_fail"].notna() | committed["cases"]["standard_fail"].notna()
    masked = committed["cases"]["measured"] == "masked"
    assert table.loc[("standard", "both"), "recall_count"] == (failed & masked).sum()


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_the_result_holds_when_it_is_measured_again():
    """On the cases that come with the suite."""
    result = study("masking").run(StudySetting())
    assert result.held, result.sentence
