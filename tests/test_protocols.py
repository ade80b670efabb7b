"""Verdict laws against enumeration, simulation and their own identities, and `bench show` on
committed and constructed records.
"""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.errors import BadInput
from bench.report import show as report
from bench.results import verdicts as protocols
from bench.results.metrics import measure
from bench.results.outcomes import Outcomes
from bench.results.record import Failure, Record
from bench.results.store import read_record, to_json
from bench.storage.identity import identity_hash
from tests.test_cli import call, refused

RECORDS = Path(__file__).parents[1] / "leaderboards" / "records" / "mnist5k"
FRESH, EOT, REPLAY = (
    next(
        path
        for path in sorted(RECORDS.glob("*random-resize--pgd--*.json"))
        if read_record(path).title["randomness"] == randomness
    )
    for randomness in ("fresh", "eot:k=20", "replay")
)
BIT_DEPTH = next(
    path
    for path in sorted(RECORDS.glob("*bit-depth--pgd--*.json"))
    if read_record(path).title["gradient"] == "full"
)
UNDEFENDED = next(RECORDS.glob("*undefended--pgd--*.json"))
Bools = npt.NDArray[np.bool_]

matrices = arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 7)))


def matrix(*rows: str) -> Bools:
    """Verdicts from rows such as 110."""
    return np.array([[mark == "1" for mark in row] for row in rows])


def mean(scores: npt.NDArray[np.float64]) -> float:
    return float(scores.mean())


# Laws ---------------------------------------------------------------------------------------------


def test_laws_on_a_matrix_by_hand():
    correct = matrix("1110", "1100", "0111", "1111")
    assert protocols.one_draw(correct).tolist() == [1, 1, 0, 1]
    assert protocols.mean_of_draws(correct).tolist() == [0.75, 0.5, 0.75, 1]
    assert protocols.any_of(correct, 2) == pytest.approx([3 / 6, 1 / 6, 3 / 6, 1])
    assert protocols.any_of(correct, 4).tolist() == [0, 0, 0, 1]
    assert protocols.majority(correct).tolist() == [1, 0, 1, 1], (
        "two of four is a tie, and a tie is wrong"
    )


@given(matrices)
def test_any_of_is_the_share_of_sets_of_draws_that_are_all_right(correct: Bools):
    for m in range(1, correct.shape[1] + 1):
        by_enumeration = np.mean(
            [correct[:, list(draws)].all(1) for draws in combinations(range(correct.shape[1]), m)],
            axis=0,
        )
        assert protocols.any_of(correct, m) == pytest.approx(by_enumeration)


@given(matrices)
def test_identities_of_the_laws(correct: Bools):
    draws = correct.shape[1]
    tries = [mean(protocols.any_of(correct, m)) for m in range(1, draws + 1)]
    average = mean(protocols.mean_of_draws(correct))
    assert tries[0] == pytest.approx(average)
    assert all(more <= fewer + 1e-12 for fewer, more in pairwise(tries)), (
        "each further try can only break more"
    )
    assert tries[-1] == correct.all(1).mean()
    assert tries[-1] <= average + 1e-12 and tries[-1] <= mean(protocols.majority(correct))


def test_any_of_estimates_new_draws_without_bias():
    rng = np.random.default_rng(0)
    chances = rng.beta(2, 0.5, size=20_000)
    correct = rng.random((20_000, 8)) < chances[:, None]
    for m in (1, 3, 8):
        assert mean(protocols.any_of(correct, m)) == pytest.approx(
            float((chances**m).mean()), abs=0.01
        )


def test_any_of_holds_at_large_numbers():
    right = np.arange(2000)[None, :] < np.array([[2000], [1999], [1000], [0]])
    assert protocols.any_of(right, 1000) == pytest.approx([1, 0.5, 0, 0])
    assert not np.signbit(protocols.any_of(right, 2)).any(), "a table would print -0.0"


@pytest.mark.parametrize("m", [0, 5])
def test_more_tries_than_draws_are_refused(m: int):
    with pytest.raises(ValueError, match="m must be in"):
        protocols.any_of(matrix("1111"), m)


def test_names_of_the_laws():
    names = [
        "one draw",
        "mean of 6",
        "any of 2 wrong",
        "any of 5 wrong",
        "any of 6 wrong",
        "majority of 6",
    ]
    assert list(protocols.verdicts(matrix("111111"))) == names
    assert list(protocols.verdicts(matrix("11"))) == [
        "one draw",
        "mean of 2",
        "any of 2 wrong",
        "majority of 2",
    ]
    assert list(protocols.verdicts(matrix("1"))) == ["one answer"]
    assert list(protocols.replayed_verdicts(matrix("1"))) == ["replayed"]
    fixed_draws = {
        randomness: scores.tolist()
        for randomness, scores in protocols.replayed_verdicts(matrix("110")).items()
    }
    assert fixed_draws == {
        "replayed, mean of 3": [2 / 3],
        "replayed, any of 3 wrong": [0],
        "replayed, majority of 3": [1],
    }


def test_laws_agree_with_a_record():
    record = read_record(REPLAY)
    shown = report.show(record)
    for shares, judged in (
        (shown.clean, record.metrics.clean),
        (shown.attacked, record.metrics.adversarial),
    ):
        for randomness, share in (
            ("mean of 20", judged.mean),
            ("any of 20 wrong", judged.all_draws),
            ("majority of 20", judged.majority),
        ):
            assert (
                shares[randomness].value,
                shares[randomness].low,
                shares[randomness].high,
            ) == pytest.approx((share.value, share.low, share.high))
    assert (
        record.metrics.replayed
        and shown.replayed["replayed"].value == record.metrics.replayed.mean.value
    )


# Intervals ----------------------------------------------------------------------------------------


def test_interval_of_a_law_rests_on_images_and_not_on_cells():
    for randomness in (protocols.mean_of_draws, protocols.majority, protocols.one_draw):
        few, many = (
            protocols.share(randomness(np.repeat(matrix("1", "0", "1", "1"), draws, axis=1)))
            for draws in (1, 50)
        )
        assert few == many, "draws that all agree add no evidence"


def test_intervals_of_means_cover():
    rng = np.random.default_rng(1)
    for truth in (0.005, 0.3):
        held = 0
        for _ in range(300):
            chances = rng.beta(2 * truth, 2 * (1 - truth), size=100)
            found = protocols.share(
                protocols.mean_of_draws(rng.random((100, 20)) < chances[:, None])
            )
            held += found.low <= truth <= found.high
        assert held >= 0.94 * 300


def paired(
    rng: np.random.Generator, n: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scores with means 0.5 and 0.25; the second is right only where the first is."""
    fresh = rng.random(n) < 0.5
    return fresh.astype(float), (fresh & (rng.random(n) < 0.5)).astype(float)


def test_gap_and_ratio_cover_and_use_the_pairing():
    rng = np.random.default_rng(2)
    gaps = ratios = 0
    for seed in range(200):
        fresh, replay = paired(rng, 150)
        gap, ratio = (
            protocols.gap(fresh, replay, 500, seed),
            protocols.ratio(replay, fresh, 500, seed),
        )
        gaps += gap.low <= 0.25 <= gap.high
        ratios += ratio.low <= 0.5 <= ratio.high
    assert 0.91 * 200 <= gaps <= 0.99 * 200 and 0.91 * 200 <= ratios <= 0.99 * 200
    same = protocols.gap(fresh, fresh)
    assert (same.low, same.value, same.high) == (0, 0, 0), "the images are the same in both"
    assert protocols.ratio(fresh, fresh).high == 1


def test_gap_and_ratio_of_known_matrices():
    fresh, replay = np.array([1.0, 1, 1, 0, 0.5, 0.5] * 50), np.array([1.0, 0, 1, 0, 0, 0] * 50)
    gap, ratio = protocols.gap(fresh, replay), protocols.ratio(replay, fresh)
    assert gap.value == pytest.approx(1 / 3) and ratio.value == pytest.approx(0.5)
    sigma = (fresh - replay).std() / np.sqrt(300)
    assert [gap.low, gap.high] == pytest.approx(
        [1 / 3 - 1.96 * sigma, 1 / 3 + 1.96 * sigma], abs=0.004
    )
    assert protocols.gap(fresh, replay) == gap, "the same images give the same interval"
    one, other = np.array([1.0, 0] * 150), np.array([0.0, 1] * 150)
    opposed = protocols.gap(one, other)
    assert [opposed.low, opposed.high] == pytest.approx(
        [-1.96 / np.sqrt(300), 1.96 / np.sqrt(300)], abs=0.01
    )


def test_a_side_without_spread_does_not_make_an_interval_empty():
    none, half = np.zeros(100), np.array([1.0, 0] * 50)
    ratio, gap = protocols.ratio(none, half), protocols.gap(half, none)
    assert ratio.value == ratio.low == 0 and 0.05 < ratio.high < 0.1
    assert gap.low < protocols.share(half).low and gap.high == protocols.share(half).high
    assert protocols.ratio(half, none) is None


def test_a_ratio_over_almost_nothing_has_no_upper_bound():
    one = np.array([1.0] + [0.0] * 99)
    ratio = protocols.ratio(one, one[::-1].copy())
    assert ratio.value == 1 and ratio.low == 0 and ratio.high == np.inf
    twice = protocols.ratio(np.array([1.0, 1] + [0.0] * 98), one)
    assert twice.value == 2 and twice.low == 0, "one resample in three has nothing to divide by"
    with pytest.raises(ValueError, match="same images"):
        protocols.gap(one, one[:50])


# Seeds and attackers ------------------------------------------------------------------------------


def test_seeds_fold_image_by_image():
    seeds = [np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 1, 0])]
    assert protocols.mean_over_seeds(seeds).tolist() == [1, 0.5, 0.5, 0]
    assert protocols.worst_of(seeds).tolist() == [1, 0, 0, 0]
    assert protocols.share(protocols.mean_over_seeds([seeds[0]] * 3)) == protocols.share(
        seeds[0]
    ), "seeds that agree add no evidence"


def test_best_fresh_attack_is_the_worst_for_each_image():
    one, other = matrix("0000", "1111"), matrix("1111", "0000")
    assert protocols.best_fresh([[one, other]]).tolist() == [0, 0]
    assert protocols.best_fresh([[one], [other]]).tolist() == [0.5, 0.5], (
        "seeds are averaged, attacks are not"
    )


# Records ------------------------------------------------------------------------------------------


def made(
    fresh: Bools,
    replayed: Bools | None = None,
    *,
    seed: int = 0,
    randomness: str | None = None,
    attack: str = "pgd",
    **identity,
) -> Record:
    """A record with these verdicts (and every clean answer right), two classes."""
    base = json.loads(REPLAY.read_text())
    n = len(fresh)
    labels = np.arange(n) % 2
    randomness = randomness or ("fresh" if replayed is None else "replay")
    answers = [
        np.where(right, labels[:, None], 1 - labels[:, None])
        for right in (np.ones_like(fresh), fresh)
    ]
    fixed_draws = (
        np.empty((n, 0), dtype=int)
        if replayed is None
        else np.where(replayed, labels[:, None], 1 - labels[:, None])
    )
    outcomes = Outcomes.of(2, np.arange(n), labels, *answers, fixed_draws)
    whole = {
        **base["identity"],
        "randomness": randomness,
        "judged_draws": fresh.shape[1],
        **identity,
    }
    whole["attack"] = {**whole["attack"], "name": attack}
    whole["dataset"] = {**whole["dataset"], "n": n}
    whole["seeds"] = {**whole["seeds"], "attack": seed}
    return Record.model_validate(
        {
            **base,
            "identity": whole,
            "id": identity_hash(whole),
            "title": {
                **base["title"],
                "randomness": randomness,
                "seed": str(seed),
                "attack": attack,
                "n": str(n),
            },
            "scale": {"n": n, "available": 1000, "reduced": True},
            "outcomes": outcomes,
            "metrics": measure(outcomes, by_gradient=False),
        }
    )


def stored(folder: Path, *records: Record) -> list[str]:
    for record in records:
        (folder / f"{record.stem}.json").write_bytes(to_json(record))
    return [str(folder / f"{record.stem}.json") for record in records]


RIGHT, HALF, WRONG = (
    matrix(*["1111"] * 100),
    matrix(*["1111", "0000"] * 50),
    matrix(*["0000"] * 100),
)
FIXED_25 = np.array([[i % 4 == 0] for i in range(100)])


def lines(*records: Record) -> dict[tuple[str, str], report.Line]:
    return {(line.attack, line.seed): line for line in report.compare(records).lines}


def test_seeds_of_one_attack_are_folded():
    rows = lines(
        made(HALF, seed=0), made(~HALF, seed=1), made(RIGHT, seed=0, randomness="eot:k=20")
    )
    assert list(rows) == [
        ("pgd", "0"),
        ("pgd", "1"),
        ("pgd", "mean of 2"),
        ("pgd", "worst of 2"),
        ("pgd (eot:k=20)", "0"),
    ]
    assert rows["pgd", "mean of 2"].shares["mean of 4"].value == 0.5
    worst = rows["pgd", "worst of 2"].shares
    assert {share.value for share in worst.values()} == {0}, "no image is robust for both seeds"
    assert "n=100 of 1000" in rows["pgd", "0"].flags


def test_the_worst_seed_of_a_mean_is_not_chosen_by_luck():
    rng = np.random.default_rng(3)
    coins = [rng.random((2000, 20)) < 0.5 for _ in range(3)]
    worst = lines(*(made(coin, seed=seed) for seed, coin in enumerate(coins)))[
        "pgd", "worst of 3"
    ].shares["mean of 20"]
    assert worst.value == pytest.approx(0.5, abs=0.02)


def test_gap_and_ratio_of_records():
    found = report.compare([made(RIGHT, attack="null"), made(HALF), made(RIGHT, FIXED_25)]).secrecy
    assert found.lowest == "pgd" and found.seeds == ["0"]
    assert (found.fresh.value, found.replayed.value, found.gap.value, found.ratio.value) == (
        0.5,
        0.25,
        0.25,
        0.5,
    )
    assert found.gap.low > 0 and "breaks more" in found.meaning


def test_points_of_a_replay_attack_count_against_fresh_randomness_too():
    found = report.compare([made(RIGHT), made(HALF, FIXED_25)]).secrecy
    assert found.fresh.value == 0.5 and found.lowest == "pgd (replay)"


def test_gap_is_the_mean_over_common_seeds():
    records = [made(RIGHT, seed=0), made(HALF, seed=1), made(WRONG, seed=2)]
    fixed_draws = [made(RIGHT, FIXED_25, seed=0), made(RIGHT, ~FIXED_25, seed=1)]
    found = report.compare(records + fixed_draws).secrecy
    assert found.seeds == ["0", "1"]
    assert (found.fresh.value, found.replayed.value) == (0.75, 0.5)


def test_worst_replay_attack_for_each_image():
    other = made(RIGHT, ~FIXED_25, attack="apgd-ce")
    assert report.compare([made(RIGHT), made(RIGHT, FIXED_25), other]).secrecy.replayed.value == 0


@pytest.mark.parametrize(
    ("fixed_noise", "said"),
    [(RIGHT[:, :1], "too weak"), (HALF[:, :1], "cannot be told"), (WRONG[:, :1], "breaks more")],
)
def test_what_a_gap_says(fixed_noise: Bools, said: str):
    assert said in report.compare([made(HALF), made(RIGHT, fixed_noise)]).secrecy.meaning


def test_no_gap_without_both_laws_or_a_common_seed():
    assert report.compare([made(RIGHT), made(HALF, randomness="eot:k=20")]).secrecy is None
    assert (
        report.compare([made(RIGHT, FIXED_25), made(RIGHT, FIXED_25, attack="apgd-ce")]).secrecy
        is None
    )
    assert report.compare([made(RIGHT, seed=0), made(RIGHT, FIXED_25, seed=1)]).secrecy is None
    several = made(RIGHT, np.repeat(FIXED_25, 3, axis=1), randomness="replay-set:k=3")
    assert report.compare([made(RIGHT), several]).secrecy is None, (
        "an attacker who must fit three tapes knows none of them"
    )
    assert "No gap" in report.render_comparison(
        [made(RIGHT), several], report.compare([made(RIGHT), several])
    )


# The command --------------------------------------------------------------------------------------


def test_show_one_record(capsys):
    code, text, _ = call(capsys, "show", str(REPLAY))
    assert (
        code == 0
        and "reduced" not in text
        and "findings: none" in text
        and "data access: none" in text
    )
    for row in (
        "one draw        | 97.2 [96.0, 98.1] | 16.6",
        "any of 20 wrong | 93.2 [91.5, 94.6] | 3.9 [2.9, 5.3]",
    ):
        assert f"| {row}" in text
    assert "| replayed        |                   | 0.0 [0.0, 0.4]    |" in text
    assert (
        "own tape;" in text
        and "torch 2.15.0; commit 2348234" in text
        and "passes/prediction: 1.0" in text
    )


def test_show_one_deterministic_record_says_nothing_of_draws(capsys):
    _, text, _ = call(capsys, "show", str(UNDEFENDED))
    assert "| one answer | 98.2" in text and "draw" not in text and "majority" not in text


def test_show_stages_findings_and_scale(capsys, tmp_path):
    _, text, _ = call(capsys, "show", str(next(RECORDS.glob("*bit-depth--autoattack*.json"))))
    assert "clean 97.9, apgd-ce 0.0" in text
    _, text, _ = call(capsys, "show", str(BIT_DEPTH))
    assert "- warn zero-gradient: " in text
    _, text, _ = call(capsys, "show", *stored(tmp_path, made(HALF)))
    assert "100 of 1000 images (reduced)" in text


def test_show_several_records_and_json(capsys):
    code, text, _ = call(capsys, "show", *map(str, (FRESH, EOT, REPLAY, REPLAY)))
    assert code == 0 and text.count("| pgd (replay)") == 1, "a record given twice counts once"
    assert (
        "| no attack" in text
        and "lowest single attack: pgd (eot:k=20)" in text
        and "cannot be told from chance" in text
    )
    _, text, _ = call(capsys, "show", *map(str, (FRESH, REPLAY)), "--json")
    found = json.loads(text)
    assert [one["title"]["randomness"] for one in found["records"]] == ["fresh", "replay"]
    assert found["records"][1]["laws"]["attacked"]["mean of 20"]["value"] == pytest.approx(0.1608)
    assert found["comparison"]["secrecy"]["fresh"]["value"] == pytest.approx(0.0024, abs=3e-4)
    assert json.loads(call(capsys, "show", str(FRESH), "--json")[1])["comparison"] is None


def test_json_holds_no_infinity():
    lone, far = np.zeros((100, 4), dtype=bool), np.zeros((100, 1), dtype=bool)
    lone[0], far[99] = True, True
    records = [made(lone), made(RIGHT, far)]
    comparison = report.compare(records)
    assert comparison.secrecy.ratio.high == np.inf and "unbounded" in report.render_comparison(
        records, comparison
    )
    assert "null" in json.dumps(report.as_json([], comparison), allow_nan=False)


def test_records_that_do_not_go_together_are_refused(capsys, tmp_path):
    assert "differ in defense and judged_draws" in refused(
        capsys, tmp_path, "show", str(FRESH), str(UNDEFENDED)
    )
    first = made(HALF)
    for other, what in [
        (made(HALF, threat={"norm": "linf", "eps": 0.1}), "threat"),
        (made(HALF, classifier={"sha256": "0"}), "classifier"),
        (made(HALF, seeds={"build": 1, "attack": 0}), "build seed"),
        (made(HALF[:50]), "dataset and images"),
    ]:
        with pytest.raises(BadInput, match=f"differ in {what}:"):
            report.read([Path(path) for path in stored(tmp_path, first, other)])


def test_what_is_no_record_is_refused(capsys, tmp_path):
    assert "cannot read the record" in refused(
        capsys, tmp_path, "show", str(tmp_path / "none.json")
    )
    assert "cannot read the record" in refused(capsys, tmp_path, "show", str(tmp_path))
    (tmp_path / "other.txt").write_text("{}")
    assert "is no record" in refused(capsys, tmp_path, "show", str(tmp_path / "other.txt"))
    base = read_record(FRESH)
    failure = Failure(
        id=base.id,
        title=base.title,
        error="RuntimeError: out of memory",
        traceback="...",
        finished="now",
    )
    path = tmp_path / "a--b.error.json"
    path.write_bytes(to_json(failure))
    code, _, said = call(capsys, "show", str(path))
    assert (
        code == 2
        and "is a failure" in said
        and "RuntimeError: out of memory" in said
        and said.count("\n") == 1
    )


def test_the_page_on_randomness_shows_real_output(capsys):
    page = (RECORDS.parents[2] / "docs" / "randomness.md").read_text()
    one, several = (
        call(capsys, "show", *map(str, paths))[1].split("\n\n")
        for paths in ([REPLAY], [FRESH, REPLAY])
    )
    for paragraph in (*one, *several[:2], several[3]):
        assert "\n".join(f"    {line}" for line in paragraph.strip().splitlines()) in page
