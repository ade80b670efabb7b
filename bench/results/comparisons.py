"""Comparisons on the same images: gaps and ratios of scores, McNemar's test, means over builds.

Differences and ratios take a paired bootstrap over images. Where a defense was built several times,
builds and images are both resampled (Owen 2007, arXiv 0712.1111).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

import numpy as np

from bench.results.aggregation import mean_over_seeds
from bench.results.arrays import Bools, Floats
from bench.results.estimate import Estimate
from bench.results.intervals import resampled_counts, share

BEATS_CHANCE, BEATS_GAIN = 0.01, 0.005
"""When one attack beats another: see `beats`."""


def gap(a: Floats, b: Floats, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean of `a` minus mean of `b`, both (n,) scores of the same images, with a paired percentile
    bootstrap over images.

    Where a side has no spread there is nothing to resample: an interval of length 0 would claim
    that all images in the world are like these. There the bounds are those that the two Wilson
    intervals allow.
    """
    p, q = share(a), share(b)
    if _has_no_spread(a) or _has_no_spread(b):
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
    if _has_no_spread(a) or _has_no_spread(b):
        return Estimate(p.value / q.value, p.low / q.high, p.high / q.low)
    above, below = _resampled_means(a, b, resamples, seed).T
    ratios = np.divide(above, below, out=np.full_like(above, inf), where=below > 0)
    high = np.quantile(ratios, 0.975, method="higher")
    low = np.quantile(np.where(below > 0, ratios, 0.0), 0.025, method="lower")
    return Estimate(p.value / q.value, float(low), float(high))


def _has_no_spread(scores: Floats) -> bool:
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


def beats(a: Bools, b: Bools) -> bool:
    """Whether attack `a` breaks more images than `b` beyond chance, and enough of them to matter.

    Of the images that one of the two breaks and the other does not, `a` has a share of more than
    half (one-sided exact binomial test, below 1 %), and it gains half a point of all images. Where
    `b` breaks nothing that `a` does not, seven images decide.

    Args:
        a, b: which images each attack broke, bool (n,), the same images.
    """
    from scipy.stats import binom

    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"verdicts of shape {a.shape} and {b.shape} are not of the same images")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    chance = float(binom.sf(only_a - 1, only_a + only_b, 0.5))
    return chance < BEATS_CHANCE and only_a - only_b >= BEATS_GAIN * len(a)


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that the chance of any false verdict among them holds
    (Holm 1979).
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted


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
    if _has_no_spread(a) or _has_no_spread(b):
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
    scores = scores + (_widening(builds) - 1) * (scores.mean(axis=1, keepdims=True) - scores.mean())
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


def _widening(builds: int) -> float:
    """The factor by which deviations of builds from their mean grow, so that a percentile interval
    of few of them holds.

    Resampling shows (builds - 1) / builds of their variance, which few builds know badly, hence
    Student's quantile over the normal one. Without that, three builds that scatter by 5 points held
    a true difference in 84 of 100 simulations, with it in 95.
    """
    from scipy.stats import norm, t

    if builds == 1:
        return 1.0
    return sqrt(builds / (builds - 1)) * float(t.ppf(0.975, builds - 1) / norm.ppf(0.975))
