"""Comparisons on the same images: gaps and ratios of scores, McNemar's test, means over builds.

Differences and ratios are taken pair by pair, with a few invented pairs of images beside the real
ones, so that small numbers of images claim no more than they show. Where a defense was built
several times, builds and images both count.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import inf, nan, sqrt

from bench.results.aggregation import mean_over_seeds
from bench.results.arrays import Bools, Floats
from bench.results.estimate import Estimate
from bench.results.intervals import Z, share

BEATS_CHANCE, BEATS_GAIN = 0.01, 0.005
"""When one attack beats another: see `beats`."""


def gap(a: Floats, b: Floats) -> Estimate:
    """Mean of `a` minus mean of `b`, both (n,) scores of the same images, with the adjusted Wald
    interval of paired shares (Agresti and Min, Statistics in Medicine 2005): that of n + 2 images,
    one more on which only `a` is right and one on which only `b` is.

    So it is never empty: that two defenses answer 100 images alike does not say that they always
    do.
    """
    _check_paired(a, b)
    return _gap(a - b, _invented(a - b, _LEAST), 0.0)


def _gap(differences: Floats, invented: float, extra: float) -> Estimate:
    """The mean of differences (n,) with its interval.

    Args:
        differences: one an image, in [-1, 1].
        invented: the squared difference of each of the two invented images.
        extra: a square of the half width that comes from elsewhere than from images.
    """
    n, value = len(differences), float(differences.mean())
    center = value * n / (n + 2)
    squares = float((differences**2).sum()) + 2 * invented
    half = sqrt(Z**2 * (squares / (n + 2) - center**2) / (n + 2) + extra)
    low, high = max(-1.0, center - half), min(1.0, center + half)
    return Estimate(value, min(low, value), max(high, value))


_LEAST = 0.4
"""Of an invented pair the smallest squared difference: shares of draws differ by a little on nearly
every image, and a few images may differ by much more than those that were seen.
"""


def _invented(differences: Floats, least: float) -> float:
    """The squared difference of an invented pair: that of the real pairs that differ, which is 1
    for yes or no, but no less than `least`.
    """
    differing = differences[differences != 0]
    return max(least, float((differing**2).mean())) if len(differing) else 1.0


_ALONE = 0.8
"""Of a ratio of shares of draws, how much of an image each of the two invented ones counts."""


def ratio(a: Floats, b: Floats) -> Estimate | None:
    """Mean of `a` over mean of `b`, both (n,) scores of the same images; None where the mean of `b`
    is 0: there is nothing to divide by.

    Fieller's interval (JRSS B 1954): all ratios r for which the mean of a - r b does not differ
    from 0. Where `a` is yes or no, four images are invented, right under both sides, either, or
    none: so a share of 0 is not taken for never. Shares of draws tell small numbers better; there
    two images, right under one side alone, count in the variance and do not move the mean. Where
    the mean of `b` may be 0 nothing bounds the ratio from above.
    """
    _check_paired(a, b)
    if b.sum() <= 0:
        return None
    moved = float(all(x in (0.0, 1.0) for x in set(a.tolist())))
    n, z2 = len(a) + 4 * moved, Z**2
    alone = _invented(a - b, _LEAST) * (1.0 if moved else _ALONE)
    top, bottom = float(a.sum() + 2 * moved) / n, float(b.sum() + 2 * moved) / n
    sums = ((a * a).sum() + moved + alone, (a * b).sum() + moved, (b * b).sum() + moved + alone)
    # (n + z^2) (top - r bottom)^2 <= z^2 mean((a - r b)^2), a quadratic in r.
    means = (top * top, top * bottom, bottom * bottom)
    constant, half_slope, leading = (
        float((n + z2) * mean - z2 * total / n) for mean, total in zip(means, sums, strict=True)
    )
    value = max(float(a.sum() / b.sum()), 0.0)
    root = sqrt(max(half_slope**2 - leading * constant, 0.0))
    if leading <= 0:
        low = 0.0 if constant <= 0 or leading == 0 else (half_slope - root) / leading
        return Estimate(value, min(max(low, 0.0), value), inf)
    low, high = (half_slope - root) / leading, (half_slope + root) / leading
    return Estimate(value, min(max(low, 0.0), value), max(high, value))


def _check_paired(a: Floats, b: Floats) -> None:
    if a.shape != b.shape:
        raise ValueError(f"scores of shape {a.shape} and {b.shape} are not of the same images")


def mcnemar(a: Bools, b: Bools) -> float:
    """Two-sided p-value of two verdicts (n,) on the same images being right equally often (McNemar
    1947), exact.

    Of the images on which one of the two is right and the other wrong, either has its half then.
    """
    if a.shape != b.shape:
        raise ValueError(f"verdicts of shape {a.shape} and {b.shape} are not of the same images")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return min(1.0, 2 * _at_most(min(only_a, only_b), only_a + only_b))


def _at_most(k: int, n: int) -> float:
    """The chance of at most k heads in n throws of a fair coin.

    In whole numbers: exact, and without the second that scipy.stats takes to be imported.
    """
    total, ways = 0, 1
    for heads in range(k + 1):
        total += ways
        ways = ways * (n - heads) // (heads + 1)
    return total / (1 << n)


def beats(a: Bools, b: Bools) -> bool:
    """Whether attack `a` breaks more images than `b` beyond chance, and enough of them to matter.

    Of the images that one of the two breaks and the other does not, `a` has a share of more than
    half (one-sided exact binomial test, below 1 %), and it gains half a point of all images. Where
    `b` breaks nothing that `a` does not, seven images decide.

    Args:
        a, b: which images each attack broke, bool (n,), the same images.
    """
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"verdicts of shape {a.shape} and {b.shape} are not of the same images")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    # At least only_a heads are at most only_b tails.
    chance = _at_most(only_b, only_a + only_b)
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


MIN_BUILDS = 2
"""From how many builds on there is an interval over builds: one says nothing of others."""

_IMAGES_SHARE = 0.3
"""How much of what images alone let builds scatter is taken off their scatter; less than all of it,
since few builds know theirs badly.
"""


def mean_over_builds(scores: Floats) -> Estimate:
    """Mean of scores (builds, n) in [0, 1] with an interval that counts builds and images, each as
    a sample of its own (two-way random effects).

    It is Wilson's on the effective number of images; of one build there is none.
    """
    mean = mean_over_seeds(list(scores))
    if len(scores) < MIN_BUILDS:
        return Estimate(float(mean.mean()), nan, nan)
    return share(mean, _of_builds(scores) / Z**2)


def gap_over_builds(a: Floats, b: Floats) -> Estimate:
    """Mean of `a` minus mean of `b`, both (builds, n) scores; a build of `a` is paired with that of
    `b` in the same row. As `gap`, with the scatter of builds; of one build no interval.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"scores of shape {a.shape} and {b.shape} are not of the same builds and images"
        )
    differences = a - b
    if len(a) < MIN_BUILDS:
        return Estimate(float(differences.mean()), nan, nan)
    mean = mean_over_seeds(list(differences))
    # Where few images differ by much, builds do, too: their scatter allows for it.
    return _gap(mean, _invented(mean, 0.0), _of_builds(differences))


def _of_builds(scores: Floats) -> float:
    """The square of the half width that the scatter of builds adds to the mean of scores
    (builds, n): Student's quantile times its standard error.
    """
    builds, n = scores.shape
    rest = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    # Var(build mean) = sigma_builds^2 + sigma_rest^2 / n.
    between = float(scores.mean(axis=1).var(ddof=1))
    within = float((rest**2).sum()) / ((builds - 1) * (n - 1)) / n
    scatter = max(0.0, between - _IMAGES_SHARE * within)
    half = _student(builds - 1) * sqrt(scatter / builds)
    return half * half


@cache
def _student(freedom: int) -> float:
    """The 97.5 % point of Student's distribution."""
    from scipy.stats import t  # slow to import, and few ask

    return float(t.ppf(0.975, freedom))
