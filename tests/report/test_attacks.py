"""Several attacks on one defense, by records with given verdicts."""

import json

import numpy as np
import pytest

from bench.report import attacks
from bench.report.attacks import Line, Secrecy, compare_attacks
from bench.results.arrays import Bools
from bench.results.extra import ExtraPoints
from bench.results.findings import Finding
from bench.results.record import Record
from tests.report.helpers import FIXED_25, HALF, RIGHT, WRONG, made


def lines(*records: Record) -> dict[tuple[str, str], Line]:
    return {(line.attack, line.seed): line for line in compare_attacks(records).lines}


def secrecy(*records: Record) -> Secrecy:
    worth = compare_attacks(records).secrecy
    assert worth is not None
    return worth


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


def test_the_worst_seed_of_a_mean_is_not_chosen_by_chance():
    rng = np.random.default_rng(3)
    coins = [rng.random((2000, 20)) < 0.5 for _ in range(3)]
    worst = lines(*(made(coin, seed=seed) for seed, coin in enumerate(coins)))[
        "pgd", "worst of 3"
    ].shares["mean of 20"]
    assert worst.value == pytest.approx(0.5, abs=0.02)


def test_a_beaten_attack_fails_no_row_where_another_breaks_those_images():
    """As on a board. Mutation: any failed check strikes the name."""
    ids = ",".join(map(str, made(RIGHT).outcomes.image_ids()[:2]))
    said = Finding(name="beaten", verdict="fail", message="a few steps break it", images=ids)
    beaten = made(RIGHT).model_copy(update={"findings": [said]})
    other = made(WRONG, attack="square")
    assert "~~" in attacks.render(compare_attacks([beaten, made(RIGHT, attack="square")]))
    assert "~~" not in attacks.render(compare_attacks([beaten, other]))


def with_extra(record: Record, images: int, draws: int) -> Record:
    """The record with points that break its first images."""
    wrong = np.repeat(1 - record.outcomes.true_labels()[:images, None], draws, axis=1)
    points = ExtraPoints.of("checks", 2, np.arange(images), wrong)
    return record.model_copy(update={"extra": [points]})


@pytest.mark.parametrize("draws", [2, 4])
def test_extra_points_are_a_worst_case_of_their_own(draws: int):
    rows = lines(with_extra(made(RIGHT), 30, draws))
    assert list(rows) == [("pgd", "0"), ("pgd", "worst case")]
    assert {one.value for one in rows["pgd", "0"].shares.values()} == {1}
    assert {one.value for one in rows["pgd", "worst case"].shares.values()} == {0.7}
    several = lines(with_extra(made(RIGHT), 30, draws), made(HALF, seed=1))
    worst = several["pgd", "worst of 2"].shares["mean of 4"].value
    assert worst == pytest.approx(0.35), "of the first 30 images none is left, of the others half"


def test_extra_points_count_against_fresh_randomness():
    worth = secrecy(with_extra(made(RIGHT), 40, 2), made(RIGHT, FIXED_25))
    assert worth.fresh.value == pytest.approx(0.6) and worth.replayed.value == 0.25


def test_gap_and_ratio_of_records():
    worth = secrecy(made(RIGHT, attack="null"), made(HALF), made(RIGHT, FIXED_25))
    assert worth.lowest == "pgd" and worth.seeds == ["0"]
    assert (worth.fresh.value, worth.replayed.value) == (0.5, 0.25)
    assert (worth.gap.value, worth.ratio.value) == (0.25, 0.5)
    assert worth.gap.low > 0 and "breaks more" in worth.meaning


def test_points_of_a_replay_attack_count_against_fresh_randomness_too():
    worth = secrecy(made(RIGHT), made(HALF, FIXED_25))
    assert worth.fresh.value == 0.5 and worth.lowest == "pgd (replay)"


def test_gap_is_the_mean_over_common_seeds():
    records = [made(RIGHT, seed=0), made(HALF, seed=1), made(WRONG, seed=2)]
    fixed_draws = [made(RIGHT, FIXED_25, seed=0), made(RIGHT, ~FIXED_25, seed=1)]
    worth = secrecy(*records, *fixed_draws)
    assert worth.seeds == ["0", "1"]
    assert (worth.fresh.value, worth.replayed.value) == (0.75, 0.5)


def test_worst_replay_attack_for_each_image():
    other = made(RIGHT, ~FIXED_25, attack="apgd-ce")
    assert secrecy(made(RIGHT), made(RIGHT, FIXED_25), other).replayed.value == 0


@pytest.mark.parametrize(
    ("fixed_noise", "said"),
    [(RIGHT[:, :1], "too weak"), (HALF[:, :1], "cannot be told"), (WRONG[:, :1], "breaks more")],
)
def test_what_a_gap_says(fixed_noise: Bools, said: str):
    assert said in secrecy(made(HALF), made(RIGHT, fixed_noise)).meaning


def test_no_gap_without_fresh_draws_and_replay_or_without_a_common_seed():
    for one, other in (
        (made(RIGHT), made(HALF, randomness="eot:k=20")),
        (made(RIGHT, FIXED_25), made(RIGHT, FIXED_25, attack="apgd-ce")),
        (made(RIGHT, seed=0), made(RIGHT, FIXED_25, seed=1)),
    ):
        assert compare_attacks([one, other]).secrecy is None
    several = made(RIGHT, np.repeat(FIXED_25, 3, axis=1), randomness="replay-set:k=3")
    comparison = compare_attacks([made(RIGHT), several])
    assert comparison.secrecy is None, (
        "an attacker who must fit three fixed draws knows none of them"
    )
    assert "No gap" in attacks.render(comparison)


def test_json_holds_no_infinity():
    lone, far = np.zeros((100, 4), dtype=bool), np.zeros((100, 1), dtype=bool)
    lone[0], far[99] = True, True
    comparison = compare_attacks([made(lone), made(RIGHT, far)])
    assert comparison.secrecy.ratio.high == np.inf
    assert "unbounded" in attacks.render(comparison)
    assert "null" in json.dumps(attacks.as_json(comparison), allow_nan=False)
