"""Aggregation rules against enumeration, simulation and their own identities."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.results import aggregation, intervals
from bench.results.arrays import Bools
from tests.results.helpers import matrix, mean

matrices = arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 7)))


def test_rules_on_a_matrix_by_hand():
    correct = matrix("1110", "1100", "0111", "1111")
    assert aggregation.one_draw(correct).tolist() == [1, 1, 0, 1]
    assert aggregation.mean_of_draws(correct).tolist() == [0.75, 0.5, 0.75, 1]
    assert aggregation.any_of(correct, 2) == pytest.approx([3 / 6, 1 / 6, 3 / 6, 1])
    assert aggregation.any_of(correct, 4).tolist() == [0, 0, 0, 1]
    assert aggregation.majority(correct).tolist() == [1, 0, 1, 1], (
        "two of four is a tie, and a tie is wrong"
    )


@given(matrices)
def test_any_of_is_the_share_of_sets_of_draws_that_are_all_right(correct: Bools):
    for m in range(1, correct.shape[1] + 1):
        by_enumeration = np.mean(
            [correct[:, list(draws)].all(1) for draws in combinations(range(correct.shape[1]), m)],
            axis=0,
        )
        assert aggregation.any_of(correct, m) == pytest.approx(by_enumeration)


@given(matrices)
def test_identities_of_the_rules(correct: Bools):
    draws = correct.shape[1]
    tries = [mean(aggregation.any_of(correct, m)) for m in range(1, draws + 1)]
    average = mean(aggregation.mean_of_draws(correct))
    assert tries[0] == pytest.approx(average)
    assert all(more <= fewer + 1e-12 for fewer, more in pairwise(tries)), (
        "each further try can only break more"
    )
    assert tries[-1] == correct.all(1).mean()
    assert tries[-1] <= average + 1e-12 and tries[-1] <= mean(aggregation.majority(correct))


def test_any_of_estimates_new_draws_without_bias():
    rng = np.random.default_rng(0)
    chances = rng.beta(2, 0.5, size=20_000)
    correct = rng.random((20_000, 8)) < chances[:, None]
    for m in (1, 3, 8):
        assert mean(aggregation.any_of(correct, m)) == pytest.approx(
            float((chances**m).mean()), abs=0.01
        )


def test_any_of_holds_at_large_numbers():
    right = np.arange(2000)[None, :] < np.array([[2000], [1999], [1000], [0]])
    assert aggregation.any_of(right, 1000) == pytest.approx([1, 0.5, 0, 0])
    assert not np.signbit(aggregation.any_of(right, 2)).any(), "a table would print -0.0"


@pytest.mark.parametrize("m", [0, 5])
def test_more_tries_than_draws_are_refused(m: int):
    with pytest.raises(ValueError, match="m must be in"):
        aggregation.any_of(matrix("1111"), m)


def test_names_of_the_rules():
    names = [
        "one draw",
        "mean of 6",
        "any of 2 wrong",
        "any of 5 wrong",
        "any of 6 wrong",
        "majority of 6",
    ]
    assert list(aggregation.verdicts(matrix("111111"))) == names
    assert list(aggregation.verdicts(matrix("11"))) == [
        "one draw",
        "mean of 2",
        "any of 2 wrong",
        "majority of 2",
    ]
    assert list(aggregation.verdicts(matrix("1"))) == ["one answer"]
    assert list(aggregation.replayed_verdicts(matrix("1"))) == ["replayed"]
    fixed_draws = {
        rule: scores.tolist()
        for rule, scores in aggregation.replayed_verdicts(matrix("110")).items()
    }
    assert fixed_draws == {
        "replayed, mean of 3": [2 / 3],
        "replayed, any of 3 wrong": [0],
        "replayed, majority of 3": [1],
    }


def test_seeds_fold_image_by_image():
    seeds = [np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 1, 0])]
    assert aggregation.mean_over_seeds(seeds).tolist() == [1, 0.5, 0.5, 0]
    assert aggregation.worst_of(seeds).tolist() == [1, 0, 0, 0]
    assert intervals.share(aggregation.mean_over_seeds([seeds[0]] * 3)) == intervals.share(
        seeds[0]
    ), "seeds that agree add no evidence"
