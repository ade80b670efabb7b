"""The worst case over attacks, by hand and by simulation."""

import numpy as np
import pytest

from bench.results.worst_case import best_fresh, worst_case
from tests.results.helpers import matrix


def test_worst_case_of_deterministic_verdicts_is_and() -> None:
    first = np.array([[True], [True], [False], [False]])
    second = np.array([[True], [False], [True], [False]])
    assert worst_case([first, second]).tolist() == [1, 0, 0, 0]
    assert worst_case([first]).tolist() == [1, 1, 0, 0]


def test_worst_case_chooses_on_one_half_and_reports_the_other() -> None:
    one = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [1, 1, 0, 1]], dtype=bool)
    two = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]], dtype=bool)
    # Chosen on the even draws (one, two, one by the tie rule) and reported on the odd, then the
    # other way round.
    assert worst_case([one, two]).tolist() == worst_case([two, one]).tolist()
    assert worst_case([one, two]).tolist() == [1.0, 0.75, 0.75]


def test_worst_case_is_not_flattered_by_its_own_choice() -> None:
    rng = np.random.default_rng(6)
    coins = [rng.random((4000, 20)) < 0.5 for _ in range(5)]
    same_draws = np.min([coin.mean(axis=1) for coin in coins], axis=0)
    assert worst_case(coins).mean() == pytest.approx(0.5, abs=0.012)  # 4.7 standard errors
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


def test_a_tie_on_the_choosing_draws_goes_to_the_attack_that_is_stronger_overall():
    """Both attacks break image 0 on every even draw; only the one that also breaks image 1 breaks
    its odd draws.
    """
    weak = np.array([[False, True] * 5, [True, True] * 5])
    strong = np.zeros((2, 10), dtype=bool)
    for order in ([weak, strong], [strong, weak]):
        assert worst_case(order).tolist() == [0.0, 0.0]


def test_best_fresh_attack_is_the_worst_for_each_image():
    one, other = matrix("0000", "1111"), matrix("1111", "0000")
    assert best_fresh([[one, other]]).tolist() == [0, 0]
    assert best_fresh([[one], [other]]).tolist() == [0.5, 0.5], (
        "seeds are averaged, attacks are not"
    )
