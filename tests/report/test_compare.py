"""`bench compare`: several defenses on the same images, by records with given verdicts."""

import json

import numpy as np
import pytest

from bench.report.compare import by_build, compare, comparison, render
from bench.results.extra import ExtraPoints
from bench.results.intervals import wilson
from tests.helpers import call, refused
from tests.report.helpers import HALF, LESS, RIGHT, WRONG, record, stored
from tests.toys import message


def compared(*records, first=None):
    (defenses,) = compare(records, first).values()
    return defenses


def test_the_worst_case_over_attacks_is_compared_with_the_base():
    defenses = compared(
        record("b", RIGHT),
        record("b", HALF, attack="null"),
        record("undefended", WRONG),
        record("a", LESS),
    )
    assert [one.defense for one in defenses] == ["undefended", "a", "b"] and defenses[
        2
    ].attacks == ("null", "pgd")
    _, a, b = comparison(defenses).to_dict("records")
    assert (a["robust"], b["robust"]) == pytest.approx((0.4, 0.5)) and (
        a["difference"],
        b["difference"],
    ) == pytest.approx((0.4, 0.5))
    rows = by_build(defenses).to_dict("records")[1:]
    assert [(row["lost"], row["won"]) for row in rows] == [(0, 40), (0, 50)]
    assert [row["p"] for row in rows] == pytest.approx([2 / 2**40, 2 / 2**50])
    assert [row["p_holm"] for row in rows] == pytest.approx([2 / 2**40, 4 / 2**50])


def test_builds_are_paired_by_their_seeds():
    """HALF and its complement agree on no image, so a wrong pairing shows."""
    ours = [record("a", HALF, build=1), record("a", ~HALF, build=5)]
    defenses = compared(
        *ours, record("b", ~HALF, build=5), record("b", HALF, build=1), record("b", RIGHT, build=2)
    )
    rows = by_build(defenses).to_dict("records")[2:]
    assert [row["build"] for row in rows] == [1, 5] and [
        (row["lost"], row["won"]) for row in rows
    ] == [(0, 0), (0, 0)]
    against_one = compared(*ours, record("undefended", WRONG))
    assert [(row["build"], row["won"]) for row in by_build(against_one).to_dict("records")[1:]] == [
        (1, 50),
        (5, 50),
    ]
    text = message(
        lambda: render(compare([*ours, record("b", RIGHT, build=2), record("b", RIGHT, build=3)]))
    )
    assert "b and a have no build seed in common" in text


def test_another_first_one_and_what_cannot_be_compared():
    records = [record("undefended", WRONG), record("a", LESS), record("b", HALF)]
    assert compared(*records, first="b")[0].defense == "b"
    assert "no record of the defense 'c' here" in message(lambda: compare(records, "c"))
    assert "no two of these records" in message(lambda: compare(records[:1]))
    edited = records[1].model_copy(
        update={"identity": {**records[1].identity, "defense": {"name": "a", "version": 2}}}
    )
    assert "2 versions of a" in message(
        lambda: compare([*records, edited.model_copy(update={"id": "0"})])
    )


def test_a_setup_alone_is_passed_over():
    other = record("a", LESS)
    apart = other.model_copy(
        update={"identity": {**other.identity, "threat": {"norm": "linf", "eps": 0.5}}}
    )
    assert len(compare([record("a", LESS), record("undefended", WRONG), apart])) == 1


def test_the_command(tmp_path, capsys):
    paths = stored(
        tmp_path, record("undefended", WRONG), record("a", LESS), record("a", HALF, build=1)
    )
    code, out, _ = call(capsys, "compare", str(tmp_path))
    assert code == 0 and "45.0" in out and out.count("| a ") == 3 and "2e-12" in out
    assert call(capsys, "compare", *paths[:2])[1].count("| a ") == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "undefended" in refused(capsys, empty, "compare", *paths, "--to", "undefendet")
    assert "no records" in refused(capsys, empty, "compare", str(empty))


def test_a_single_build_has_no_interval_over_builds_but_its_network_over_images():
    one, two = compared(record("undefended", WRONG), record("a", LESS))
    means = comparison([one, two]).to_dict("records")
    assert means[1]["robust"] == pytest.approx(0.4) and np.isnan(means[1]["robust_low"])
    assert np.isnan(means[1]["difference_low"]) and means[1]["difference"] == pytest.approx(0.4)
    row = by_build([one, two]).to_dict("records")[1]
    assert (row["robust_low"], row["robust_high"]) == (wilson(40, 100).low, wilson(40, 100).high)
    assert row["gain_low"] < row["gain"] == pytest.approx(0.4) and row["gain_high"] < 0.51
    text = render(compare([record("undefended", WRONG), record("a", LESS)]))
    first, second = text.split("\n\n")[1:3]
    assert "[" not in first and "40.0" in first and "40.0 [30.9, 49.8]" in second
    assert "two networks" in second and "not of the two methods" in " ".join(text.split())


def test_two_builds_have_an_interval():
    records = [record("a", LESS, build=build) for build in (0, 1)]
    _, two = compared(record("undefended", WRONG), *records)
    assert comparison([two])["robust_low"].notna().all()


def test_extra_points_join_the_worst_case():
    base = record("undefended", WRONG)
    labels = base.outcomes.true_labels()
    broken = np.arange(10)
    points = ExtraPoints.of("base points", 2, broken, np.stack([1 - labels[:10]] * 2, axis=1))
    one = record("a", RIGHT).model_copy(update={"extra": [points]})
    _, defense = compared(base, one)
    assert defense.robust.mean() == pytest.approx(0.9)
    assert defense.right.sum() == 90, "wrong in every draw that was judged"
    once = ExtraPoints.of("checks", 2, broken, np.stack([1 - labels[:10], labels[:10]], axis=1))
    _, defense = compared(base, record("a", RIGHT).model_copy(update={"extra": [once]}))
    assert defense.right.all(), "a tie of two draws is no majority"


def test_plain_numbers(tmp_path, capsys):
    stored(tmp_path, record("undefended", WRONG), record("a", LESS))
    code, out, _ = call(capsys, "compare", str(tmp_path), "--json")
    (setup,) = json.loads(out)
    first, second = setup["builds"]
    assert (
        code == 0
        and first["p"] is None
        and second["won"] == 40
        and second["p"] == pytest.approx(2 / 2**40)
    )
    assert (
        setup["means"][1]["difference"] == pytest.approx(0.4)
        and setup["means"][0]["difference"] is None
    )
