"""95 % intervals over images: of shares, of scores that count every class alike, of means.

An interval covers the sampling of images only. A robust accuracy stays an upper bound however
narrow its interval is, because no interval knows how weak the attack was. How often each of them
holds the truth is measured by the study `coverage`.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from bench.results.arrays import Floats, Ints
from bench.results.class_scores import balanced_accuracy, leave_one_out, macro_f1, tally
from bench.results.estimate import Estimate

MIN_IMAGES, MIN_PER_CLASS = 50, 5
"""From how many images on, in all and for each class on average, a score that counts every class
alike has an interval.
"""

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""

_WHOLE = 0.25
"""Weight, in variances of a yes or no, of the guess that the draws of an image all agree: few
images know the spread of their scores badly, and near 0 and 1 hardly at all.
"""

_EVEN = 2.0
"""As `_WHOLE`, of the guess that all classes are recognised equally often."""


def wilson(successes: float, n: int) -> Estimate:
    """The 95 % score interval of a binomial share (Wilson, JASA 1927), without continuity
    correction: 45 of 1000 give 0.045 in [0.034, 0.060].

    Args:
        successes: in [0, n]; it may be fractional.
        n: number of images, at least 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"{successes} successes out of {n} is no share: n must be at least 1 and 0 <= "
            "successes <= n"
        )
    return _score_interval(successes / n, n)


def _score_interval(p: float, n: float) -> Estimate:
    z2 = Z**2
    # (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    scale = 1 + z2 / n
    center = (p + z2 / (2 * n)) / scale
    half = Z / scale * sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # At 0/n and n/n the exact bounds are 0 and 1, which rounding misses by an ulp.
    return Estimate(p, min(max(center - half, 0.0), p), max(min(center + half, 1.0), p))


def share(scores: Floats, extra: float = 0.0) -> Estimate:
    """Mean of scores (n,), one an image, with Wilson's interval.

    The scores are yes or no, or shares of an image's draws; a single one may lie outside [0, 1],
    their mean counts as a share. Of yes or no it is Wilson's interval. Images that are right in a
    part of their draws scatter less, so the interval is that of as many images as their variance is
    worth. `extra` is a variance of the mean that does not come from images.
    """
    n, p = len(scores), min(max(float(scores.mean()), 0.0), 1.0)
    whole = n == 1 or bool(np.isin(scores, (0.0, 1.0)).all())
    if whole and not extra:
        return wilson(min(max(float(scores.sum()), 0.0), n), n)
    variance = p * (1 - p) / n if whole else float(scores.var(ddof=1)) / n
    return effective(p, variance, n, 1.0, _WHOLE, extra)


def effective(
    value: float, variance: float, n: int, guess: float, weight: float, extra: float = 0.0
) -> Estimate:
    """Wilson's interval on the effective number of images (Korn and Graubard, Survey Methodology
    1998): n over the design effect, which is the estimate's variance over that of a share,
    p (1 - p) / n.

    Args:
        value: the estimate p, in [0, 1].
        variance: of the estimate.
        n: number of images.
        guess: what the design effect is taken for where the images say nothing.
        weight: of the guess; that of the images is n p (1 - p).
        extra: a variance that is known apart and added.
    """
    p = value * (1 - value)
    # The images' own design effect is n variance / (p (1 - p)), with the weight n p (1 - p).
    design = (n**2 * variance + weight * guess) / (n * p + weight)
    return _score_interval(value, n / (design + (n * extra / p if p > 0 else 0.0)))


def class_estimates(labels: Ints, predictions: Ints, K: int) -> tuple[Estimate, Estimate]:
    """Balanced accuracy and macro-F1 of the pooled draws, with Wilson's interval on the effective
    number of images; the variance is the jackknife's (Efron and Stein 1981), leaving out an image
    with all its draws, since those are no independent evidence.

    Below 50 images, or 5 for each class on average, there is no interval: it is [0, 1].

    Args:
        labels: (n,) in [0, K).
        predictions: (n,) or (n, draws), in [-1, K).
        K: number of classes.
    """
    counts = tally(labels, predictions, K)
    values = [float(score(counts)) for score in (balanced_accuracy, macro_f1)]
    n, sizes = len(labels), np.bincount(labels)
    sizes = sizes[sizes > 0]
    if n < max(MIN_IMAGES, MIN_PER_CLASS * len(sizes)):
        balanced, f1 = (Estimate(value, 0.0, 1.0) for value in values)
        return balanced, f1
    # Var(mean over classes) = sum_k r (1 - r) / n_k / K^2 where all classes have one recall r.
    even = n * float((1 / sizes).sum()) / len(sizes) ** 2
    balanced, f1 = (
        effective(value, (n - 1) * float(without.var()), n, even, _EVEN)
        for value, without in zip(values, leave_one_out(labels, predictions, K), strict=True)
    )
    return balanced, f1


def student_mean(values: Floats) -> Estimate:
    """The mean of measurements that are no shares, with Student's 95 % interval over images; of a
    single one there is none.

    Args:
        values: one an image, (n,); NaN where an image has none, which leaves it out.
    """
    from scipy.stats import t  # slow to import, and few ask

    known = values[~np.isnan(values)]
    if not known.size:
        return Estimate(np.nan, np.nan, np.nan)
    value = float(known.mean())
    if known.size == 1:
        return Estimate(value, np.nan, np.nan)
    half = float(t.ppf(0.975, known.size - 1)) * float(known.std(ddof=1)) / sqrt(known.size)
    return Estimate(value, value - half, value + half)
