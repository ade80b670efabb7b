"""The laws by which repeated draws become a verdict, derived from which draws were right.

A law turns the matrix `correct` (n images, N draws; see `Outcomes.correct`) into one score an image
in [0, 1]: the chance that the image is right under that law. So laws, seeds and comparisons are all
statements about (n,) scores, and images are the only independent evidence. An interval of a mean
score is Wilson's on the number of images, as everywhere: conservative for scores that are no plain
yes or no, and honest near 0, where a bootstrap over 100 images holds a true 0.5 % in three cases of
four only. Differences and ratios take a paired bootstrap over images. Where a defense was built
several times, builds and images are both resampled (Owen 2007, arXiv 0712.1111).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, sqrt

import numpy as np

from bench.results.estimate import Estimate
from bench.results.statistics import Bools, Floats, resampled_counts, wilson, worst_case

TRIES = (2, 5, 10)
"""How many tries an attacker gets, besides one and all recorded draws."""


# Laws: (n, N) to (n,) -----------------------------------------------------------------------------


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
    """Scores (n,) under every law, by the law's name; a single draw knows one law only.

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
    """Scores (n,) on the attack's own tapes (n, k): on its one tape, or over its k tapes under each
    law.
    """
    if _checked(correct).shape[1] == 1:
        return {"replayed": one_draw(correct)}
    return {
        f"replayed, {name}": scores
        for name, scores in verdicts(correct, ()).items()
        if name != "one draw"
    }


def share(scores: Floats) -> Estimate:
    """Mean of scores (n,) in [0, 1] with its 95 % interval over images."""
    return wilson(min(float(scores.sum()), len(scores)), len(scores))


# Root seeds ---------------------------------------------------------------------------------------


def mean_over_seeds(scores: Sequence[Floats]) -> Floats:
    """Each image's mean over seeds, each (n,): the seeds of an image are one piece of evidence."""
    mean: Floats = np.mean(scores, axis=0)
    return mean


def worst_of(scores: Sequence[Floats]) -> Floats:
    """Each image's lowest score over seeds or attacks, each (n,); for yes-or-no verdicts: right
    under all of them.

    A share over few draws is low by luck as well; there `worst_case` is the honest number.
    """
    lowest: Floats = np.min(scores, axis=0)
    return lowest


# Comparisons on the same images -------------------------------------------------------------------


def gap(a: Floats, b: Floats, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean of `a` minus mean of `b`, both (n,) scores of the same images, with a paired percentile
    bootstrap over images.

    Where a side has no spread there is nothing to resample: an interval of length 0 would claim
    that all images in the world are like these. There the bounds are those that the two Wilson
    intervals allow.
    """
    p, q = share(a), share(b)
    if _flat(a) or _flat(b):
        return Estimate(p.value - q.value, p.low - q.high, p.high - q.low)
    means = _resampled_means(a, b, resamples, seed)
    low, high = np.quantile(means[:, 0] - means[:, 1], (0.025, 0.975))
    return Estimate(p.value - q.value, float(low), float(high))


def ratio(a: Floats, b: Floats, resamples: int = 10_000, seed: int = 0) -> Estimate | None:
    """Mean of `a` over mean of `b`; as `gap`. None where the mean of `b` is 0: there is nothing to
    divide by.

    A resample with 0 below the line can be any ratio: it counts as 0 for the lower bound and as
    infinite for the upper.
    """
    p, q = share(a), share(b)
    if q.value == 0:
        return None
    if _flat(a) or _flat(b):
        return Estimate(p.value / q.value, p.low / q.high, p.high / q.low)
    above, below = _resampled_means(a, b, resamples, seed).T
    ratios = np.divide(above, below, out=np.full_like(above, inf), where=below > 0)
    high = np.quantile(ratios, 0.975, method="higher")
    low = np.quantile(np.where(below > 0, ratios, 0.0), 0.025, method="lower")
    return Estimate(p.value / q.value, float(low), float(high))


def _flat(scores: Floats) -> bool:
    return bool(scores.min() == scores.max())


def _resampled_means(a: Floats, b: Floats, resamples: int, seed: int) -> Floats:
    """Means (resamples, 2) of both over the same resampled images; images with equal scores are
    exchangeable.
    """
    if a.shape != b.shape:
        raise ValueError(f"scores of shape {a.shape} and {b.shape} are not of the same images")
    pairs, sizes = np.unique(np.stack([a, b], axis=1), axis=0, return_counts=True)
    means: Floats = np.concatenate(
        [times @ pairs for times in resampled_counts(sizes, resamples, seed, len(pairs))]
    ) / len(a)
    return means


def best_fresh(attacks: Sequence[Sequence[Bools]]) -> Floats:
    """Scores (n,) under the strongest attacker who does not know the draws: the worst attack for
    each image, mean over seeds.

    The single attack with the lowest mean leaves images standing that another one breaks, and a
    number that is too high for fresh randomness makes secret draws look worth more than they are.
    `worst_case` chooses on one half of the draws and reports on the other.

    Args:
        attacks: for each seed, of each attack (n, N) on fresh draws; the points of a replay attack
            are points like any others.
    """
    return mean_over_seeds([worst_case(correct) for correct in attacks])


def mcnemar(a: Bools, b: Bools) -> float:
    """Two-sided p-value of two verdicts (n,) on the same images being right equally often (McNemar
    1947), exact.

    Of the images on which one of the two is right and the other wrong, either has its half then.
    """
    from scipy.stats import binom  # slow to import, and few ask

    if a.shape != b.shape:
        raise ValueError(f"verdicts of shape {a.shape} and {b.shape} are not of the same images")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return min(1.0, 2 * float(binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that the chance of any false verdict among them holds
    (Holm 1979).
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted


# Several builds on the same images ----------------------------------------------------------------


def mean_over_builds(scores: Floats, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean of scores (builds, n) in [0, 1] with its 95 % interval, builds and images resampled each
    for themselves.

    It is never narrower than Wilson's on the number of images. One build says nothing of others:
    then images alone are counted.
    """
    low, high = np.quantile(_resampled_builds(scores, resamples, seed), (0.025, 0.975))
    over_images = share(mean_over_seeds(list(scores)))
    return Estimate(
        over_images.value,
        max(0.0, min(low, over_images.low)),
        min(1.0, max(high, over_images.high)),
    )


def gap_over_builds(a: Floats, b: Floats, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean of `a` minus mean of `b`, both (builds, n) scores; a build of `a` is paired with that of
    `b` in the same row.

    Where a side has no spread, as `gap`.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"scores of shape {a.shape} and {b.shape} are not of the same builds and images"
        )
    if _flat(a) or _flat(b):
        p, q = mean_over_builds(a, resamples, seed), mean_over_builds(b, resamples, seed)
        return Estimate(p.value - q.value, p.low - q.high, p.high - q.low)
    low, high = np.clip(
        np.quantile(_resampled_builds(a - b, resamples, seed), (0.025, 0.975)), -1, 1
    )
    return Estimate(float((a - b).mean()), float(low), float(high))


def _resampled_builds(scores: Floats, resamples: int, seed: int) -> Floats:
    """Means (resamples,) of scores (builds, n) under resampled builds and, independently, resampled
    images.
    """
    builds, n = scores.shape
    scores = scores + (_few_builds(builds) - 1) * (
        scores.mean(axis=1, keepdims=True) - scores.mean()
    )
    patterns, sizes = np.unique(scores.T, axis=0, return_counts=True)
    means = (
        np.concatenate(
            [times @ patterns for times in resampled_counts(sizes, resamples, seed, len(patterns))]
        )
        / n
    )
    times = np.random.Generator(np.random.Philox([seed, 1])).multinomial(
        builds, np.full(builds, 1 / builds), size=resamples
    )
    resampled: Floats = (means * times).sum(axis=1) / builds
    return resampled


def _few_builds(builds: int) -> float:
    """By how much deviations of builds from their mean are widened, so that a percentile interval
    of few of them holds.

    Resampling shows (builds - 1) / builds of their variance, which few builds know badly, hence
    Student's quantile over the normal one. Without that, three builds that scatter by 5 points held
    a true difference in 84 of 100 simulations, with it in 95.
    """
    from scipy.stats import norm, t

    if builds == 1:
        return 1.0
    return sqrt(builds / (builds - 1)) * float(t.ppf(0.975, builds - 1) / norm.ppf(0.975))
