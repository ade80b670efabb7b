"""The ranking rule: what no attack left out, and no weak one added, may win."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.report.boards.make import boards
from bench.report.boards.protocol import BoardFile, Protocol, is_transfer, read_board_file
from bench.results.comparisons import gap
from bench.results.findings import Finding
from bench.results.outcomes import Stages
from bench.results.store import read_all
from tests.helpers import ROOT
from tests.report.helpers import record

COUNTS = st.lists(st.integers(0, 100), min_size=3, max_size=3)

ABOUT = BoardFile(protocol=Protocol(deterministic=("pgd", "autoattack")))


def plain(defense, verdicts, attack="autoattack", **changes):
    """A record of a defense that draws no random numbers."""
    one = record(defense, np.array(verdicts, dtype=bool)[:, None], attack=attack, **changes)
    return one.model_copy(update={"stochastic": False})


def ranks(records, about=ABOUT):
    (board,) = boards(records, about)
    return {row.defense: row.rank for row in board.rows}


def reasons(records, about=ABOUT):
    (board,) = boards(records, about)
    return {row.defense: row.unranked for row in board.rows}


def robust(count, n=100):
    return [at < count for at in range(n)]


def both(defense, count, **changes):
    return [plain(defense, robust(count), attack, **changes) for attack in ("pgd", "autoattack")]


def test_a_rank_counts_the_intervals_that_lie_wholly_above():
    rows = [*both("a", 80), *both("b", 75), *both("c", 40), *both("d", 5)]
    assert ranks(rows) == {"a": 1, "b": 1, "c": 3, "d": 4}


def test_a_row_that_lacks_an_attack_of_the_protocol_is_below_and_counts_for_nobody():
    rows = [*both("a", 40), plain("fewer", robust(90), "pgd")]
    assert ranks(rows) == {"a": 1, "fewer": None}
    assert reasons(rows) == {"a": "", "fewer": "incomplete: lacks autoattack"}


def test_controls_alone_are_no_attack():
    rows = [*both("a", 40), plain("quiet", robust(97), "null"), plain("loud", robust(96), "noise")]
    assert reasons(rows) == {"a": "", "quiet": "not attacked", "loud": "not attacked"}


def test_a_transfer_attack_is_not_the_attack():
    other = Finding(name="transfer", verdict="note", message="another function")
    seen = plain("b", robust(90)).model_copy(update={"findings": [other]})
    assert reasons([*both("a", 40), seen, plain("b", robust(90), "pgd")])["b"].endswith(
        "lacks autoattack"
    )


def test_what_is_not_to_be_believed_has_no_rank():
    failed = Finding(name="copies", verdict="fail", message="no copy answers alike")
    rows = [one.model_copy(update={"findings": [failed]}) for one in both("b", 90)]
    assert reasons([*both("a", 40), *rows])["b"] == "failed a check"


def test_builds_of_one_method_are_one_row_with_their_spread():
    rows = [*both("a", 40), *both("a", 60, build=1), *both("b", 90)]
    (board,) = boards(rows, ABOUT)
    row = next(row for row in board.rows if row.defense == "a")
    assert (row.robust.value, row.spread) == (0.5, (0.4, 0.6))
    assert [build.robust.value for build in row.builds] == [0.4, 0.6]
    one = row.builds[0].robust
    assert row.robust.high - row.robust.low > one.high - one.low, "builds scatter, too"


@settings(max_examples=12, deadline=None)
@given(COUNTS, st.randoms(use_true_random=False))
def test_another_attack_never_raises_a_row(counts, random):
    rows = [one for name, count in zip("abc", counts, strict=True) for one in both(name, count)]
    added = plain("a", [random.random() < 0.8 for _ in range(100)], "square")
    before, after = ranks(rows)["a"], ranks([*rows, added])["a"]
    assert after >= before


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(0, 100), min_size=3, max_size=3), st.sampled_from(["pgd", "autoattack"])
)
def test_no_row_is_ranked_for_an_attack_left_out(counts, attack):
    rows = [one for name, count in zip("abc", counts, strict=True) for one in both(name, count)]
    left = [one for one in rows if (one.title["defense"], one.title["attack"]) != ("a", attack)]
    before, after = ranks(rows), ranks(left)
    assert after["a"] is None and all(after[name] <= before[name] for name in "bc")


def committed(name):
    folder = ROOT / "leaderboards/records" / name
    return boards(read_all([folder])[0], read_board_file(folder))


def test_the_misleading_boards_come_out_right():
    """Null alone was a worst case of 97.3; PGD alone stood above AutoAttack; four replays and EOT
    beside one replay; a collapsed student between two that work.
    """
    for board in committed("mnist5k-clean-students"):
        assert {row.unranked for row in board.rows} == {"not attacked"}
    datafree = {row.defense: row for row in committed("mnist5k-datafree")[0].rows}
    spared = datafree["datafreeshield:images=4000,synthesis=fields"]
    assert spared.unranked == "incomplete: lacks autoattack" and spared.rank is None
    assert datafree["datafreeshield"].rank == 1 and len(datafree["datafreeshield"].builds) == 3
    assert datafree["dast"].unranked == "collapsed"
    all_attacks, few, *_ = committed("mnist5k-purification")
    lacks = {row.defense: row.unranked for row in few.rows if not row.base}
    assert lacks == {
        "diffpure": "incomplete: lacks pgd on fresh noise and pgd (eot)",
        "diffpure:model=folder:models/fashion-purifier": "incomplete: lacks pgd (eot)",
    }
    purified = {row.defense: row for row in all_attacks.rows}
    passes = [purified[name].extras.replay_passes for name in ("revpure", "diffpure")]
    assert passes[0] != pytest.approx(passes[1]), "unequal budgets are told in the cell"
    assert all(row.rank for board in committed("testtime") for row in board.rows)


def test_the_headline_says_where_a_constant_answer_gets_as_much():
    """Mutations: the value instead of the interval's lower end; always said."""

    def headline(count):
        records = [plain("a", robust(count), attack=one) for one in ("pgd", "autoattack")]
        (board,) = boards([r.model_copy(update={"metrics": lowered(r)}) for r in records], ABOUT)
        return board.sentences[1]

    def lowered(one):
        return one.metrics.model_copy(update={"constant_accuracy": 0.5})

    assert headline(20).startswith("No row is as good as a constant answer, which gets 50.0 %. ")
    assert headline(55).startswith("No row is clearly better than a constant answer, which gets")
    assert "constant" not in headline(80)


def test_the_headline_compares_with_the_undefended_classifier_on_the_same_images():
    """Mutations: shares of other images compared; the gain told where it covers 0."""

    def headline(base, defended):
        records = [
            plain(name, verdicts, attack=one)
            for name, verdicts in (("undefended", base), ("a", defended))
            for one in ("pgd", "autoattack")
        ]
        (board,) = boards(records, ABOUT)
        assert [row.rank for row in board.rows] == [1, 1], "the intervals overlap"
        return board.sentences[1]

    half, more = robust(50), robust(58)
    told = headline(half, more)
    expected = gap(np.array(more, dtype=float), np.array(half, dtype=float))
    assert expected.low > 0 and f"on the same images that is {expected} points more" in told
    # As many more, but of other images: 42 are lost and 50 won.
    assert "can be told from" in headline(half, more[::-1])


def test_a_place_is_a_range_where_intervals_overlap():
    """Mutations: those below not counted; unranked rows counted."""
    rows = [*both("a", 80), *both("b", 75), *both("c", 68), *both("d", 5)]
    (board,) = boards([*rows, plain("fewer", robust(90), "pgd")], ABOUT)
    places = {row.defense: row.place for row in board.rows}
    assert places == {"a": "1-3", "b": "1-3", "c": "1-3", "d": "4", "fewer": ""}


def test_a_row_of_which_something_is_noted_does_not_lead():
    """Mutation: notes do not matter."""
    doubt = Finding(name="zero-gradient", verdict="warn", message="no gradient")
    rows = [
        *both("a", 80),
        *(one.model_copy(update={"findings": [doubt]}) for one in both("b", 80)),
    ]
    (board,) = boards(rows, ABOUT)
    assert {row.defense: row.leads for row in board.rows} == {"a": True, "b": False}
    assert "overlaps that of b (see its notes)" in board.sentences[1]


def test_the_headline_tells_what_stands_unranked_beside_the_undefended_classifier():
    """Mutations: their numbers left out; the same said where there is no defense."""
    (alone,) = boards(both("undefended", 5), ABOUT)
    assert "no defense was tried" in alone.sentences[1]
    (board,) = boards([*both("undefended", 5), plain("fewer", robust(90), "pgd")], ABOUT)
    assert "beside it: fewer (90.0 [82.6, 94.5] %, incomplete)" in board.sentences[1]


@pytest.mark.parametrize(
    ("base", "defended", "leads"),
    [
        (robust(10), robust(80), True),
        (robust(10), robust(24), False),  # a constant answer may be as good
        (robust(50), robust(58), True),  # better on the same images alone
        (robust(50), robust(58)[::-1], False),
    ],
)
def test_who_leads_is_clearly_better_than_nothing(base, defended, leads):
    """Mutations: the undefended classifier leads; the value instead of the interval; no gain."""
    records = [
        plain(name, verdicts, attack=one)
        for name, verdicts in (("undefended", base), ("a", defended))
        for one in ("pgd", "autoattack")
    ]
    metrics = [one.metrics.model_copy(update={"constant_accuracy": 0.2}) for one in records]
    changed = [
        one.model_copy(update={"metrics": own}) for one, own in zip(records, metrics, strict=True)
    ]
    (board,) = boards(changed, ABOUT)
    assert {row.defense: row.leads for row in board.rows} == {"undefended": False, "a": leads}


def test_the_first_sentence_says_where_not_every_row_faced_each_attack():
    """Mutation: never said; controls counted."""
    (board,) = boards([*both("a", 40), *both("b", 30), plain("b", robust(90), "null")], ABOUT)
    assert "not every row" not in board.sentences[0]
    (board,) = boards([*both("a", 40), plain("b", robust(90), "pgd")], ABOUT)
    assert board.sentences[0].endswith("by pgd and autoattack (not every row by each).")


def test_an_attack_of_which_a_part_is_a_transfer_is_none():
    """Mutation: any finding of that name counts, whoever said it."""
    whole = Finding(name="transfer", verdict="note", message="the points were made elsewhere")
    part = whole.model_copy(update={"message": f"transfer:base: {whole.message}"})
    one = plain("a", robust(40), attack="pgd")
    stages = Stages(names=["pgd", "transfer:base"], broken_by="-" * 100)
    several = one.model_copy(update={"stages": stages})
    for record_, finding, expected in (
        (several, part, False),
        (one, part, True),
        (one, whole, True),
    ):
        assert is_transfer(record_.model_copy(update={"findings": [finding]})) is expected


def test_the_headline_tells_what_is_left_where_the_noise_is_known():
    """Mutation: the highest row's share of fresh draws alone."""
    (board,) = committed("mnist5k-purification")[:1]
    (best,) = [row for row in board.rows if row.rank == 1]
    assert best.extras.replayed.value < best.robust.low
    told = f"{best.extras.replayed} % where the attacker knows the noise"
    assert told in board.sentences[1]
    (plain_board,) = boards([*both("a", 80), *both("b", 20)], ABOUT)
    assert "knows the noise" not in plain_board.sentences[1]
