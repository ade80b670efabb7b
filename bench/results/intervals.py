"""95 % intervals: Wilson's of a share, and the bootstrap over images.

An interval covers the sampling of images only. A robust accuracy stays an upper bound however
narrow its interval is, because no interval knows how weak the attack was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.results.arrays import Floats, Ints, Numbers
from bench.results.class_scores import answer_codes, drawn_predictions, raised_counts, tally
from bench.results.estimate import Estimate

Statistic = Callable[[Numbers], Floats]
"""Counts by class (..., 3, K), as `tally` makes them, to one value in [0, 1] for each leading
index.
"""

CHUNK_ELEMENTS = 1 << 22
"""Bounds the working memory of the bootstrap to a few times 32 MB."""

_Z = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson(successes: float, n: int) -> Estimate:
    """The 95 % score interval of a binomial share (Wilson, JASA 1927), without continuity
    correction: 45 of 1000 give 0.045 in [0.034, 0.060].

    Args:
        successes: in [0, n]. It may be fractional, as when each image adds its share of right
            draws: the variance of such shares is at most p(1-p), so the interval is then
            conservative.
        n: number of images, at least 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"{successes} successes out of {n} is no share: n must be at least 1 and 0 <= "
            "successes <= n"
        )
    p, z2 = successes / n, _Z**2
    # (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    scale = 1 + z2 / n
    center = (p + z2 / (2 * n)) / scale
    half = _Z / scale * sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # At 0/n and n/n the exact bounds are 0 and 1, which rounding misses by an ulp.
    return Estimate(p, min(max(center - half, 0.0), p), max(min(center + half, 1.0), p))


def share(scores: Floats) -> Estimate:
    """Mean of scores (n,) in [0, 1], one an image, with Wilson's interval on the number of images.

    It is conservative for scores that are no plain yes or no, and honest near 0, where a bootstrap
    over 100 images holds a true 0.5 % in three cases of four only.
    """
    return wilson(min(float(scores.sum()), len(scores)), len(scores))


def cluster_bootstrap(
    labels: Ints,
    predictions: Ints,
    K: int,
    statistic: Statistic,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """The percentile 95 % bootstrap over images of a statistic of the pooled counts by class.

    All draws of an image enter a resample together (cluster bootstrap), since they are no
    independent evidence. A class that a resample misses has no support there and drops out of that
    resample's mean.

    Args:
        labels: (n,) in [0, K).
        predictions: (n,) or (n, draws), in [-1, K).
        K: number of classes.
        statistic: for example `macro_f1`; it gets float64 tallies (c, 3, K) of c resamples at a
            time.
        resamples: number of resamples, at least 1.
        seed: key of the Philox generator; the same seed gives the same interval.
    """
    drawn = drawn_predictions(labels, predictions, K)
    observed = float(statistic(tally(labels, drawn, K)))
    codes = answer_codes(labels, drawn, K)
    values = np.concatenate(
        [statistic(tallies) for tallies in _resampled_tallies(codes, K, resamples, seed)]
    )
    low, high = np.quantile(values, (0.025, 0.975))
    return Estimate(observed, float(low), float(high))


def bootstrap_mean(values: Floats, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """The percentile 95 % bootstrap over images of a mean.

    Args:
        values: one an image, (n,); NaN where an image has none, which leaves it out.
        resamples: number of resamples, at least 1.
        seed: key of the Philox generator; the same seed gives the same interval.
    """
    known = values[~np.isnan(values)]
    if not known.size:
        return Estimate(np.nan, np.nan, np.nan)
    generator = np.random.Generator(np.random.Philox(seed))
    times = generator.multinomial(known.size, np.full(known.size, 1 / known.size), size=resamples)
    low, high = np.quantile(times @ known / known.size, (0.025, 0.975))
    return Estimate(float(known.mean()), float(low), float(high))


def _resampled_tallies(
    codes: npt.NDArray[np.int64], K: int, resamples: int, seed: int
) -> Iterator[Floats]:
    """Tallies (c, 3, K) of resampled images, in chunks; `codes` as `answer_codes` makes them.

    Images with the same draws in any order are exchangeable, so how often each such pattern is
    drawn is multinomial, and there are far fewer patterns than images.
    """
    patterns, sizes = np.unique(np.sort(codes, axis=1), axis=0, return_counts=True)
    tallies = _pattern_tallies(patterns, K)
    for times in resampled_counts(sizes, resamples, seed, max(tallies.shape)):
        counts = tallies @ np.ascontiguousarray(times.T, dtype=np.float64)
        yield np.moveaxis(counts.reshape(3, K, -1), -1, 0)


def _pattern_tallies(patterns: npt.NDArray[np.int64], K: int) -> Any:
    """Sparse (3 K, patterns): what one image of each pattern adds to a flat tally."""
    from scipy.sparse import csr_array  # slow to import, and only the bootstrap needs it

    counts, answers = raised_counts(patterns.ravel(), K)
    raised = answers >= 0
    columns = answers[raised] // patterns.shape[1]
    return csr_array(
        (np.ones(len(columns)), (counts[raised], columns)), shape=(3 * K, len(patterns))
    )


def resampled_counts(
    sizes: Ints, resamples: int, seed: int, width: int
) -> Iterator[npt.NDArray[np.int64]]:
    """How often each group of exchangeable images is drawn in a bootstrap of all images, in chunks
    (c, groups).

    Args:
        sizes: number of images in each group.
        resamples: number of resamples, at least 1; the chunks hold as many together.
        seed: key of the Philox generator.
        width: elements of working memory that the caller needs for one resample.
    """
    n = int(sizes.sum())
    generator = np.random.Generator(np.random.Philox(seed))
    chunk = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, resamples, chunk):
        yield generator.multinomial(n, sizes / n, size=min(chunk, resamples - start))
