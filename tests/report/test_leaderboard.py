"""Boards: worst case per image, one row a defense."""

import numpy as np
import pytest

from bench.report.leaderboard import boards, csv
from bench.report.leaderboard import page as board_page
from bench.results.extra import ExtraPoints
from bench.results.findings import Finding
from bench.results.record import Failure
from tests.helpers import ROOT, run_toys
from tests.report.helpers import HALF, LESS, RIGHT, WRONG, record
from tests.results.helpers import matrix


def test_leaderboard_takes_the_worst_case_per_image(tmp_path):
    records = run_toys(
        tmp_path, defenses=("undefended",), attacks=("pgd:steps=1", "noise:tries=1"), eps=0.02
    )
    records = [r.model_copy(update={"extra": []}) for r in records]
    (board,) = boards(records)
    each = [r.outcomes.correct("adversarial")[:, 0] for r in records]
    expected = (each[0] & each[1]).mean()
    assert board.numbers["worst_case"].iloc[0] == pytest.approx(expected)
    assert expected <= min(e.mean() for e in each)
    # Two attacks that each break the other half of the images leave nothing, though either alone
    # leaves half.
    labels = records[0].outcomes.labels
    halves = [labels[:75] + "2" * 75, "2" * 75 + labels[75:]]
    apart = [
        r.model_copy(update={"outcomes": r.outcomes.model_copy(update={"adversarial": [h]})})
        for r, h in zip(records, halves, strict=True)
    ]
    kept = np.mean([label == "2" for label in labels])
    assert boards(apart)[0].numbers["worst_case"].iloc[0] == pytest.approx(kept)
    page = board_page([board])
    assert "worst case" in page and "data access" in page and "toy" in page
    assert "worst_case_low" in csv([board]).splitlines()[0]


def test_replayed_worst_case_is_taken_per_image(tmp_path):
    attacks = ("pgd+replay:steps=1,step=eps/8", "noise+replay:tries=2")
    records = [r for r in run_toys(tmp_path, attacks=attacks) if r.stochastic]
    (board,) = boards(records)
    both = np.min([r.outcomes.correct("replayed")[:, 0] for r in records], axis=0).mean()
    assert board.numbers["replayed"].iloc[0] == pytest.approx(both)
    assert both < min(r.metrics.replayed.mean.value for r in records)


def test_an_edited_plugin_is_another_row_on_the_board(tmp_path):
    file = tmp_path / "plugin.py"
    text = (
        (ROOT / "tests/toy_plugins.py")
        .read_text()
        .replace("@DEFENSES", "# @DEFENSES")
        .replace("@DATASETS", "# @DATASETS")
    )
    file.write_text(text.replace("@ATTACKS", "# @ATTACKS"))
    records = run_toys(tmp_path / "r", defenses=(f"{file}@Jitter",), attacks=("null",))
    file.write_text(file.read_text() + "\n# edited\n")
    records += run_toys(tmp_path / "r", defenses=(f"{file}@Jitter",), attacks=("null",))[1:]
    (board,) = boards(records)
    assert len(board.numbers) == 3


def test_of_two_versions_of_an_attack_the_board_shows_the_newer(tmp_path):
    record = run_toys(tmp_path, defenses=("undefended",), attacks=("pgd:steps=1",))[0]
    older = record.model_copy(update={"finished": "2000-01-01T00:00:00+00:00", "id": "0" * 16})
    (board,) = boards([record, older])
    assert (
        board.numbers["passes_per_image"].iloc[0]
        == record.cost.attack_forwards + record.cost.attack_backwards
    )


def test_rows_of_one_name_tell_their_build():
    (board,) = boards([record("a", HALF), record("a", LESS, build=1), record("b", RIGHT)])
    assert list(board.table["defense"]) == ["b", "a (build 0)", "a (build 1)"]


def test_a_missing_gradient_is_flagged_only_where_no_other_attack_went_lower():
    doubt = Finding(name="zero-gradient", verdict="warn", message="no gradient")
    blocked = record("a", HALF).model_copy(update={"findings": [doubt]})
    other = record("a", WRONG, attack="square")
    (alone,) = boards([blocked])
    assert alone.numbers["flags"].tolist() == ["n=100 of 1000, zero-gradient"]
    (beside,) = boards([blocked, other])
    assert beside.numbers["flags"].tolist() == ["n=100 of 1000"]


def test_all_draws_counts_images_that_are_right_in_each_of_them_under_each_attack():
    half_of_draws = matrix(*["1110"] * 40, *["1111"] * 60)
    other = matrix(*["1111"] * 70, *["0111"] * 30)
    (board,) = boards([record("a", half_of_draws), record("a", other, attack="square")])
    assert board.table["all draws"].tolist() == ["100.0 -> 30.0"]


def test_several_seeds_of_an_attack_show_their_mean_and_range():
    (board,) = boards([record("a", HALF), record("a", LESS, seed=1)])
    assert board.table["pgd"].tolist() == ["45.0 (40.0-50.0)"]


def test_what_crashed_is_an_error_and_not_a_number():
    one = record("a", HALF)
    failure = Failure(id="0", title=one.title, error="it crashed", traceback="", finished="")
    text = board_page(boards([one]), [failure])
    assert text.startswith("# Leaderboard") and "## Errors\n\n- a x pgd on mnist5k" in text
    assert "error (it crashed)" in text and "## Errors" not in board_page(boards([one]))


def test_extra_points_join_the_worst_case_and_all_draws():
    one = record("a", RIGHT)
    labels = one.outcomes.true_labels()
    points = ExtraPoints.of("checks", 2, np.arange(20), np.stack([1 - labels[:20]] * 4, axis=1))
    (board,) = boards([one.model_copy(update={"extra": [points]})])
    assert board.numbers["worst_case"].tolist() == [0.8]
    assert board.table["all draws"].tolist() == ["100.0 -> 80.0"]
    assert board.table["pgd"].tolist() == ["100.0"], "the attack's own number stays"
