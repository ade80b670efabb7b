"""The worst case over attacks, by hand and by simulation."""

import numpy as np
import pytest

from bench.results.extra import ExtraPoints
from bench.results.intervals import share
from bench.results.worst_case import attacked, best_fresh, extra_verdicts, worst_case
from tests.report.helpers import made
from tests.results.helpers import matrix


def test_worst_case_of_deterministic_verdicts_is_and() -> None:
    first = np.array([[True], [True], [False], [False]])
    second = np.array([[True], [False], [True], [False]])
    assert worst_case([first, second]).tolist() == [1, 0, 0, 0]
    assert worst_case([first]).tolist() == [1, 1, 0, 0]


def test_worst_case_chooses_on_the_other_draws() -> None:
    """Image 0 by hand: attack `one` was right in the draws 0 and 1, `two` in draw 0 alone. Judged
    on draw 0, the others say 1 of 2 and 0 of 2: `two`, which is right. On draw 1 it is 1 and 1 of
    2: a tie of one that is right and one that is wrong. On draw 2 it is 2 and 1: `two`, wrong.
    """
    one, two = matrix("110", "111"), matrix("100", "000")
    for order in ([one, two], [two, one]):
        assert worst_case(order) == pytest.approx([1 / 2, 0])


def test_worst_case_of_one_attack_is_its_mean() -> None:
    rng = np.random.default_rng(5)
    coins = rng.random((50, 20)) < 0.3
    assert worst_case([coins]) == pytest.approx(coins.mean(axis=1))


def test_worst_case_is_not_flattered_by_its_own_choice() -> None:
    rng = np.random.default_rng(6)
    coins = [rng.random((4000, 20)) < 0.5 for _ in range(5)]
    same_draws = np.min([coin.mean(axis=1) for coin in coins], axis=0)
    assert worst_case(coins).mean() == pytest.approx(0.5, abs=0.015)
    assert same_draws.mean() < 0.4


def test_worst_case_finds_the_stronger_attack() -> None:
    rng = np.random.default_rng(7)
    weak, strong = rng.random((500, 20)) < 0.9, rng.random((500, 20)) < 0.1
    half = np.arange(500)[:, None] < 250
    assert worst_case(
        [np.where(half, weak, strong), np.where(half, strong, weak)]
    ).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("shapes", [[], [(3, 1), (3, 2)], [(3, 2), (4, 2)], [(3, 0)]])
def test_worst_case_refuses_verdicts_that_do_not_go_together(shapes: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        worst_case([np.ones(shape, dtype=bool) for shape in shapes])


@pytest.mark.parametrize("attacks", [2, 10])
def test_worst_case_has_no_bias(attacks: int) -> None:
    """Against the sum over all that may happen: image i's attack a is right with probability p_ia,
    and the attacker chooses by 19 draws. For chances that differ by image and attack and for equal
    ones, within four standard errors.
    """
    rng = np.random.default_rng(9)
    for chances in (rng.beta(0.5, 0.5, (4000, attacks)), np.full((4000, attacks), 0.9)):
        correct = [rng.random((4000, 20)) < p[:, None] for p in chances.T]
        tried = [rng.binomial(19, p) for p in chances.T]
        expected = chances[np.arange(4000), np.argmin(tried, axis=0)]
        scores = worst_case(correct)
        error = np.hypot(scores.std(), expected.std()) / np.sqrt(4000)
        assert abs(scores.mean() - expected.mean()) < 4 * error
        assert scores.mean() - chances.min(axis=1).mean() < 0.02


def test_worst_case_interval_covers() -> None:
    rng = np.random.default_rng(10)
    held = 0
    for _ in range(300):
        chances = np.repeat(rng.beta(0.5, 0.5, (100, 1)), 5, axis=1)
        correct = [rng.random((100, 20)) < p[:, None] for p in chances.T]
        interval = share(worst_case(correct))
        held += interval.low <= 0.5 <= interval.high
    # Three standard errors below 95 %; 94.7 % over 3,000 samples.
    assert held >= 0.912 * 300


def test_a_tie_goes_to_any_that_is_not_clearly_weaker() -> None:
    """Attacks that tie on an image count alike there, and their order does not matter."""
    tied, other = matrix("0110", "1111"), matrix("0110", "0000")
    assert worst_case([tied, other]).tolist() == worst_case([other, tied]).tolist() == [0.5, 0.0]
    # Each was right once in the three draws that are tried, whichever of the draws judges.
    one, two = matrix("1100", "1111"), matrix("0011", "0000")
    alone = worst_case([one[:1], two[:1]])
    assert worst_case([one, two])[0] == alone[0] == worst_case([two, one])[0]


def test_on_a_tie_a_clearly_weaker_attack_is_left_out() -> None:
    """Judged on draw 0 or 1, image 0 ties at one right answer; `weak` would be right there."""
    weak, strong = matrix("1100"), matrix("0010")
    assert worst_case([weak, strong]).tolist() == [0.5]
    more = np.tile(matrix("1111"), (20, 1)), np.tile(matrix("0000"), (20, 1))
    both = [np.concatenate(pair) for pair in zip((weak, strong), more, strict=True)]
    assert worst_case(both)[0] == worst_case(both[::-1])[0] == 0.25


def test_no_other_image_moves_the_interval() -> None:
    """Nearly all images tie between ten attacks: chosen together, they would be right or wrong
    together, and the scatter over images would not show it.
    """
    rng = np.random.default_rng(12)
    means, widths = [], []
    for _ in range(200):
        coins = [rng.random((400, 20)) < 0.02 for _ in range(10)]
        scores = worst_case(coins)
        means.append(scores.mean())
        widths.append(scores.std() / np.sqrt(400))
    assert np.std(means) < 1.2 * np.mean(widths)


def test_points_with_fewer_draws_join() -> None:
    right, wrong = np.ones((4, 20), dtype=bool), np.zeros((4, 20), dtype=bool)
    assert worst_case([right, wrong[:, :2]]).tolist() == [0] * 4
    assert worst_case([right, right[:, :2]]).tolist() == [1] * 4
    assert worst_case([wrong, right[:, :2]]).tolist() == [0] * 4
    # Where 19 answers of 19 were right, even a point that was right in its one try promises more.
    once = matrix("01", "10", "11", "00")
    assert worst_case([right, once]).tolist() == [0.5, 0.5, 1, 0]
    # Of 20 draws 12 are right: only a point that was wrong in its try is taken, and the other
    # answer judges it. Where that is right, it is a gain for the defense on one of two draws.
    mostly = np.repeat([[False, True]], [8, 12], axis=1)
    assert worst_case([mostly, matrix("01")]) == pytest.approx([0.6 + 0.5])
    assert worst_case([mostly, matrix("11")]) == pytest.approx([0.6])
    three = worst_case([right, wrong[:, :5], once])
    assert three.tolist() == [0] * 4


def test_points_with_fewer_draws_bring_no_bias() -> None:
    """All points alike: the mean stays, although the lowest of the shares is far below it."""
    rng = np.random.default_rng(11)
    coins = [rng.random((20_000, draws)) < 0.5 for draws in (20, 20, 5, 2)]
    assert worst_case(coins).mean() == pytest.approx(0.5, abs=0.012)
    # Right half of the time, against a point that breaks all: taken where its one try was wrong,
    # and where it was right by those who saw more than three quarters right.
    stronger = [rng.random((20_000, 20)) < 0.5, rng.random((20_000, 2)) < 0.1]
    assert worst_case(stronger).mean() == pytest.approx(0.9 * 0.1 + 0.1 * 0.5, abs=0.012)


def test_best_fresh_attack_is_the_worst_for_each_image():
    one, other = matrix("0000", "1111"), matrix("1111", "0000")
    assert best_fresh([[one, other]]).tolist() == [0, 0]
    assert best_fresh([[one], [other]]).tolist() == [0.5, 0.5], (
        "seeds are averaged, attacks are not"
    )


def test_extra_points_stand_beside_the_attacks() -> None:
    record = made(matrix(*["1111"] * 4))
    labels = record.outcomes.true_labels()
    points = ExtraPoints.of("base points", 2, np.array([1, 2]), np.stack([1 - labels[1:3]] * 2, 1))
    both = attacked(record.model_copy(update={"extra": [points]}))
    assert [one.shape for one in both] == [(4, 4), (4, 2)]
    assert worst_case(both).tolist() == [1, 0, 0, 1]
    assert attacked(record)[0].all() and len(attacked(record)) == 1
    alone = ExtraPoints.of("checks", 2, np.array([1]), 1 - labels[1:2, None])
    assert len(attacked(record.model_copy(update={"extra": [alone]}))) == 1, "nothing to choose by"


def test_extra_points_in_the_rules_of_a_row() -> None:
    few = extra_verdicts(matrix("01", "11", "00"), 4)
    assert few["one draw"].tolist() == [0, 1, 0] and few["mean of 4"].tolist() == [0.5, 1, 0]
    assert few["any of 4 wrong"].tolist() == [0, 1, 0]
    assert few["majority of 4"].tolist() == [1, 1, 0], "a tie of two answers is no majority"
    assert set(few) == set(extra_verdicts(matrix("0101"), 4))
