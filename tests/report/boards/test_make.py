"""Boards: worst case per image, one row a method."""

import json

import numpy as np
import pytest

from bench.report.boards.citing import command
from bench.report.boards.make import boards
from bench.report.boards.protocol import BoardFile, Protocol
from bench.results.extra import ExtraPoints
from bench.results.findings import Finding
from tests.helpers import ROOT, run_toys
from tests.report.helpers import HALF, LESS, RIGHT, WRONG, record
from tests.results.helpers import matrix


def rows(records):
    (board,) = boards(records)
    return board.rows


def test_the_worst_case_is_taken_per_image(tmp_path):
    records = run_toys(
        tmp_path, defenses=("undefended",), attacks=("pgd:steps=1", "noise:tries=1"), eps=0.02
    )
    records = [r.model_copy(update={"extra": []}) for r in records]
    (row,) = rows(records)
    each = [r.outcomes.correct("adversarial")[:, 0] for r in records]
    expected = (each[0] & each[1]).mean()
    assert row.robust.value == pytest.approx(expected)
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
    assert rows(apart)[0].robust.value == pytest.approx(kept)


def test_boards_on_which_nothing_is_ranked_come_last(tmp_path):
    alone = ("undefended",)
    few = run_toys(tmp_path, defenses=alone, attacks=("null",), dataset="toy:n=20")
    many = run_toys(tmp_path, defenses=alone, attacks=("pgd:steps=1",), dataset="toy:n=30")
    about = BoardFile(protocol=Protocol(deterministic=("pgd",)))
    made = boards([*few, *many], about)
    ranked = [any(row.rank for row in board.rows) for board in made]
    assert ranked == [True, False]


def test_replayed_worst_case_is_taken_per_image(tmp_path):
    attacks = ("pgd+replay:steps=1,step=eps/8", "noise+replay:tries=2")
    records = [r for r in run_toys(tmp_path, attacks=attacks) if r.stochastic]
    (row,) = rows(records)
    both = np.min([r.outcomes.correct("replayed")[:, 0] for r in records], axis=0).mean()
    assert row.extras.replayed.value == pytest.approx(both)
    assert both < min(r.metrics.replayed.mean.value for r in records)
    passes = sum(r.cost.attack_forwards + r.cost.attack_backwards for r in records)
    assert row.extras.replay_passes == pytest.approx(passes) and len(row.extras.replays) == 2


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
    assert len({row.defense for row in rows(records)}) == 3


def test_of_two_versions_of_an_attack_the_board_shows_the_newer(tmp_path):
    record = run_toys(tmp_path, defenses=("undefended",), attacks=("pgd:steps=1",))[0]
    older = record.model_copy(update={"finished": "2000-01-01T00:00:00+00:00", "id": "0" * 16})
    (row,) = rows([record, older])
    assert [source.id for source in row.sources] == [record.id]


@pytest.mark.parametrize("name", ["beaten", "base-points"])
def test_what_one_attack_left_is_no_doubt_where_another_breaks_it(name):
    """Mutations: any other attack answers, or one that has the same fault."""
    ids = record("a", HALF).outcomes.image_ids()
    some = ",".join(str(i) for i in ids[:2])

    def found(**of):
        left = Finding(name=name, verdict="fail", message="few steps break it", **of)
        return record("a", RIGHT).model_copy(update={"findings": [left]})

    beaten, stronger = found(images=some), record("a", WRONG, attack="square")
    (row,) = rows([beaten, stronger])
    assert row.notes == () and not row.unranked.startswith("failed")
    faulty = stronger.model_copy(update={"findings": beaten.findings})
    for others in ([], [record("a", RIGHT, attack="square")], [faulty]):
        (row,) = rows([beaten, *others])
        assert row.notes[0].flag == name and row.unranked == "failed a check"
    (row,) = rows([found(), stronger])
    assert row.unranked == "failed a check"


@pytest.mark.parametrize("name", ["zero-gradient", "no-gradient", "flat-gradient", "slopes"])
def test_a_missing_gradient_is_flagged_only_where_no_other_attack_went_lower(name):
    doubt = Finding(name=name, verdict="warn", message="no gradient")
    blocked = record("a", HALF).model_copy(update={"findings": [doubt]})
    other = record("a", WRONG, attack="square")
    (alone,) = rows([blocked])
    assert [(note.flag, note.reason) for note in alone.notes] == [(name, "no gradient")]
    assert rows([blocked, other])[0].notes == ()


def test_all_draws_counts_images_that_are_right_in_each_of_them_under_each_attack():
    half_of_draws = matrix(*["1110"] * 40, *["1111"] * 60)
    other = matrix(*["1111"] * 70, *["0111"] * 30)
    (row,) = rows([record("a", half_of_draws), record("a", other, attack="square")])
    assert row.extras.all_draws == (1.0, 0.3)


def test_several_seeds_of_an_attack_show_their_mean_and_range():
    (row,) = rows([record("a", HALF), record("a", LESS, seed=1)])
    (attack,) = row.attacks
    assert (attack.robust.value, attack.lowest, attack.highest) == (0.45, 0.4, 0.5)
    assert attack.seeds == (0, 1)


def test_extra_points_join_the_worst_case_and_all_draws():
    one = record("a", RIGHT)
    labels = one.outcomes.true_labels()
    points = ExtraPoints.of("checks", 2, np.arange(20), np.stack([1 - labels[:20]] * 4, axis=1))
    (row,) = rows([one.model_copy(update={"extra": [points]})])
    assert row.robust.value == 0.8 and row.extras.all_draws == (1.0, 0.8)
    assert row.attacks[0].robust.value == 1.0, "the attack's own number stays"


def test_each_class_has_its_own_worst_case_over_builds():
    # Labels are 0, 1, 0, 1, ...: of HALF those of class 0 survive, of WRONG none.
    (row,) = rows([record("a", HALF), record("a", WRONG, build=1)])
    assert [(one.label, one.n, one.clean.value, one.robust.value) for one in row.classes] == [
        (0, 50, 1.0, 0.5),
        (1, 50, 1.0, 0.0),
    ]


def test_a_board_is_plain_json_and_reads_back_as_a_frame():
    (board,) = boards([record("a", HALF), record("a", LESS, build=1), record("b", RIGHT)])
    read = json.loads(json.dumps(board.as_dict(), allow_nan=False))
    assert [row["defense"] for row in read["rows"]] == [row.defense for row in board.rows]
    frame = board.frame()
    assert frame[["defense", "build", "attack"]].values.tolist() == [
        [row.defense, build.seed, attack.attack]
        for row in board.rows
        for build in row.builds
        for attack in build.attacks
    ]
    assert board.wide().groupby("defense")["build_worst_case"].mean().to_dict() == {
        row.defense: row.robust.value for row in board.rows
    }


def test_the_command_of_a_row_plans_the_evaluations_that_made_it(tmp_path):
    import shlex

    from bench.engine.plan import plan
    from bench.engine.request import read_request

    attacks = ("pgd+replay:steps=2", "pgd:steps=2,randomness=(eot:k=3)", "null")
    made = run_toys(tmp_path, attacks=attacks, seeds=(0, 1))
    own = [one for one in made if one.title["defense"] == "toy-jitter"]
    words = shlex.split(command(own))[2:]
    values: dict = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        values.setdefault(option[2:].replace("-", "_"), []).append(value)
    several = {name: values.pop(name) for name in ("defense", "attack", "seed")}
    request = {f"{name}s": tuple(given) for name, given in several.items()}
    request |= {name: given[0] for name, given in values.items()}
    request["seeds"] = tuple(map(int, request["seeds"]))
    request |= {name: int(request[name]) for name in ("n", "build_seed")}
    planned = plan(read_request(request, "test"))
    assert {one.id for one in own} <= {one.id for one in planned}
    # A folder of the machine that made it tells a reader nothing; one below a root does.
    for given, shown in (("npz:/home/me/x.npz", "npz:x.npz"), ("npz:data/x.npz",) * 2):
        elsewhere = own[0].model_copy(update={"sources": {**own[0].sources, "dataset": given}})
        assert f"--dataset {shown} " in command([elsewhere])


def test_the_command_says_that_a_search_was_in_bfloat16():
    one = record("a", HALF)
    told = {**one.environment, "compile": {"bfloat16": 100}}
    assert "--compile" not in command([one])
    assert command([one.model_copy(update={"environment": told})]).endswith(" --compile on")
