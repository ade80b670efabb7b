"""Boards: worst case per image, one row a defense."""

import numpy as np
import pytest

from bench.report.leaderboard import boards, csv
from bench.report.leaderboard import page as board_page
from tests.helpers import ROOT, run_toys
from tests.report.helpers import HALF, LESS, RIGHT, record


def test_leaderboard_takes_the_worst_case_per_image(tmp_path):
    records = run_toys(
        tmp_path, defenses=("undefended",), attacks=("pgd:steps=1", "noise:tries=1"), eps=0.02
    )
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
