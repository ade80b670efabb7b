"""Aggregation rules: how repeated draws become one verdict an image.

A rule turns the matrix `correct` (n images, N draws; see `Outcomes.correct`) into one score an
image in [0, 1]: the chance that the image is right under that rule. An image that is right in 3 of
4 draws scores 0.75 under "mean of 4", 0 under "any of 4 wrong" and 1 under "majority of 4". Rules,
seeds and comparisons are all statements about such scores (n,), and images are the only independent
evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bench.results.arrays import Bools, Floats

TRIES = (2, 5, 10)
"""How many tries an attacker gets, besides one and all recorded draws."""


def one_draw(correct: Bools) -> Floats:
    """Right in the first draw: asked once."""
    return np.asarray(_checked(correct)[:, 0], dtype=np.float64)


def mean_of_draws(correct: Bools) -> Floats:
    """Share of right draws: the chance that one answer is right."""
    shares: Floats = _checked(correct).mean(axis=1)
    return shares


def any_of(correct: Bools, m: int) -> Floats:
    """Chance that m different draws are all right: one wrong among m tries breaks the image.

    Of an image with r right among N draws, C(r, m) / C(N, m) of the sets of m draws are all right
    (hypergeometric): unbiased for m new draws. At m = 1 it is the mean, at m = N the share of
    images right in every draw.

    Args:
        correct: (n, N).
        m: number of tries, in [1, N].
    """
    draws = _checked(correct).shape[1]
    if not 1 <= m <= draws:
        raise ValueError(f"{m} tries out of {draws} draws: m must be in [1, {draws}]")
    tries = np.arange(m)
    right = correct.sum(axis=1)[:, None] - tries
    chances: Floats = np.prod(np.maximum(right, 0) / (draws - tries), axis=1)
    return chances


def majority(correct: Bools) -> Floats:
    """Right in more than half of the draws; a tie is wrong."""
    return np.asarray(2 * _checked(correct).sum(axis=1) > correct.shape[1], dtype=np.float64)


def _checked(correct: Bools) -> Bools:
    if correct.ndim != 2 or correct.size == 0:
        raise ValueError(f"verdicts of shape {correct.shape} must be (n, draws), not empty")
    return correct


def verdicts(correct: Bools, tries: Iterable[int] = TRIES) -> dict[str, Floats]:
    """Scores (n,) under every aggregation rule, by the rule's name; a single draw knows one rule
    only.

    Args:
        correct: (n, N).
        tries: numbers of tries; those of N and more give way to N.
    """
    draws = _checked(correct).shape[1]
    if draws == 1:
        return {"one answer": one_draw(correct)}
    numbers = [*(m for m in tries if m < draws), draws]  # one try is the mean
    return {
        "one draw": one_draw(correct),
        f"mean of {draws}": mean_of_draws(correct),
        **{f"any of {m} wrong": any_of(correct, m) for m in numbers},
        f"majority of {draws}": majority(correct),
    }


def replayed_verdicts(correct: Bools) -> dict[str, Floats]:
    """Scores (n,) under the attack's own fixed noise (n, k): under its one draw, or by
    each aggregation rule over its k draws.
    """
    if _checked(correct).shape[1] == 1:
        return {"replayed": one_draw(correct)}
    return {
        f"replayed, {name}": scores
        for name, scores in verdicts(correct, ()).items()
        if name != "one draw"
    }


def mean_over_seeds(scores: Sequence[Floats]) -> Floats:
    """Each image's mean over seeds, each (n,): the seeds of an image are one piece of evidence."""
    mean: Floats = np.mean(scores, axis=0)
    return mean


def worst_of(scores: Sequence[Floats]) -> Floats:
    """Each image's lowest score over seeds or attacks, each (n,); for yes-or-no verdicts: right
    under all of them.

    A share over few draws is low by chance as well; there `worst_case` is the honest number.
    """
    lowest: Floats = np.min(scores, axis=0)
    return lowest
