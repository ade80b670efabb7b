"""What a count of right answers says: intervals, class-aware scores, collapse, and verdicts over
repeated draws.

An interval covers the sampling of images only. A robust accuracy stays an upper bound however
narrow its interval is, because no interval knows how weak the attack was.

Predictions are class numbers in [0, K), or `NO_CLASS` where the output was NaN: such an answer is
never right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.results.estimate import Estimate

Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.integer[Any] | np.floating[Any]]
Statistic = Callable[[Numbers], Floats]
"""Confusion counts (..., K, K+1) to one value in [0, 1] for each leading index."""

NO_CLASS = -1
"""The prediction that stands for a NaN output."""

_Z = 1.959963984540054  # the 97.5 % point of the normal law
_CHUNK_ELEMENTS = 1 << 22  # bounds the working memory of the bootstrap to a few times 32 MB
_ROUNDING = 1e-9  # differences such as 0.35 - 0.34 must not fall on the wrong side of one point


# Intervals ----------------------------------------------------------------------------------------


def wilson(successes: float, n: int) -> Estimate:
    """The 95 % score interval of a binomial share (Wilson, JASA 1927), without continuity
    correction.

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
    scale = 1 + z2 / n
    center = (p + z2 / (2 * n)) / scale
    half = _Z / scale * sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # At 0/n and n/n the exact bounds are 0 and 1, which rounding misses by an ulp.
    return Estimate(p, min(max(center - half, 0.0), p), max(min(center + half, 1.0), p))


# Class-aware scores -------------------------------------------------------------------------------


def tally(labels: Ints, predictions: Ints, K: int) -> npt.NDArray[np.int64]:
    """Count by class; a table of label against prediction would be K times as large, and no score
    here needs it.

    Args:
        labels: (n,) in [0, K).
        predictions: (n,) or (n, draws), in [-1, K); all draws are pooled.
        K: number of classes.

    Returns:
        int64 (3, K): answers that are rightly of each class, answers that were due, answers given.
        `NO_CLASS` is given to none.
    """
    drawn = _checked(labels, predictions, K)
    rows, columns = _entries(_cells(labels, drawn, K).ravel(), K)
    return np.bincount(rows[columns >= 0], minlength=3 * K).reshape(3, K)


def _checked(labels: Ints, predictions: Ints, K: int) -> Ints:
    """The predictions as (n, draws), once everything is known to be in range."""
    drawn = predictions[:, None] if predictions.ndim == 1 else predictions
    if labels.ndim != 1 or drawn.ndim != 2 or len(drawn) != len(labels) or drawn.size == 0:
        raise ValueError(
            f"labels {labels.shape} and predictions {predictions.shape} must be (n,) and (n, "
            "draws), not empty"
        )
    if labels.min() < 0 or labels.max() >= K or drawn.min() < NO_CLASS or drawn.max() >= K:
        raise ValueError(
            f"with {K} classes, labels must be in [0, {K}) and predictions in [-1, {K})"
        )
    return drawn


def _cells(labels: Ints, drawn: Ints, K: int) -> npt.NDArray[np.int64]:
    """The flat index into a (K, K+1) table of each (image, draw)."""
    columns = np.where(drawn == NO_CLASS, K, drawn).astype(np.int64)
    return labels[:, None].astype(np.int64) * (K + 1) + columns


def _entries(
    cells: npt.NDArray[np.int64], K: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which counts of a flat (3, K) tally each of `cells` (m,) raises: their indices, and the
    cell's position, -1 for none.
    """
    labels, given = np.divmod(cells, K + 1)
    right, answered = labels == given, given < K
    places = np.arange(len(cells))
    rows = np.concatenate([labels, K + labels, 2 * K + np.where(answered, given, 0)])
    return rows, np.concatenate(
        [np.where(right, places, -1), places, np.where(answered, places, -1)]
    )


def macro_f1(tallies: Numbers) -> Floats:
    """Mean of 2TP/(2TP+FP+FN) over the classes that have support; 0 for such a class that is never
    predicted.

    The constant predictor of a class with share p gets 2p/(K(1+p)) where all K classes have
    support.

    Args:
        tallies: counts (..., 3, K), as `tally` makes them.

    Returns:
        (...) in [0, 1].
    """
    right, support, given = np.moveaxis(tallies, -2, 0)
    return _mean_over_supported(2 * right / np.maximum(support + given, 1), support)


def balanced_accuracy(tallies: Numbers) -> Floats:
    """Mean recall over the classes that have support: (..., 3, K) counts to (...) in [0, 1]."""
    right, support, _ = np.moveaxis(tallies, -2, 0)
    return _mean_over_supported(right / np.maximum(support, 1), support)


def _mean_over_supported(scores: Floats, support: Numbers) -> Floats:
    """Mean over the last axis where `support` is positive; scores elsewhere must not count,
    whatever they are.
    """
    has_support = support > 0
    mean: Floats = (scores * has_support).sum(axis=-1) / has_support.sum(axis=-1)
    return mean


def constant_accuracy(labels: Ints, K: int) -> float:
    """The accuracy of the best constant predictor, which is the share of the largest class; labels
    (n,) in [0, K).
    """
    if labels.size == 0:
        raise ValueError("no labels: a share needs at least one image")
    return float(np.bincount(labels, minlength=K).max() / len(labels))


# Bootstrap ----------------------------------------------------------------------------------------


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
    drawn = _checked(labels, predictions, K)
    observed = float(statistic(tally(labels, drawn, K)))
    values = np.concatenate(
        [statistic(tables) for tables in _resampled(_cells(labels, drawn, K), K, resamples, seed)]
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


def _resampled(cells: npt.NDArray[np.int64], K: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Tallies (c, 3, K) of resampled images, in chunks.

    Images with the same draws in any order are exchangeable, so how often each such pattern is
    drawn is multinomial, and there are far fewer patterns than images.
    """
    patterns, sizes = np.unique(np.sort(cells, axis=1), axis=0, return_counts=True)
    tables = _pattern_tables(patterns, K)
    for times in resampled_counts(sizes, resamples, seed, max(tables.shape)):
        counts = tables @ np.ascontiguousarray(times.T, dtype=np.float64)
        yield np.moveaxis(counts.reshape(3, K, -1), -1, 0)


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
    chunk = max(1, _CHUNK_ELEMENTS // width)
    for start in range(0, resamples, chunk):
        yield generator.multinomial(n, sizes / n, size=min(chunk, resamples - start))


def _pattern_tables(patterns: npt.NDArray[np.int64], K: int) -> Any:
    """Sparse (3 K, patterns): what one image of each pattern adds to a flat tally."""
    from scipy.sparse import csr_array  # slow to import, and only the bootstrap needs it

    rows, places = _entries(patterns.ravel(), K)
    counted = places >= 0
    columns = places[counted] // patterns.shape[1]
    return csr_array(
        (np.ones(len(columns)), (rows[counted], columns)), shape=(3 * K, len(patterns))
    )


# Collapse -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collapse:
    """Whether a classifier answers (almost) the same class whatever it sees, and the numbers that
    tell.

    Attributes:
        verdict: True where at least one sign of collapse was found.
        reason: the signs, joined by semicolons; empty where there is none.
        largest_predicted_share: share of all answers that name the most predicted class; a NaN
            output names none.
        balanced_accuracy: with its bootstrap interval.
        macro_f1: with its bootstrap interval.
        constant_accuracy: accuracy of the best constant predictor.
    """

    verdict: bool
    reason: str
    largest_predicted_share: float
    balanced_accuracy: Estimate
    macro_f1: Estimate
    constant_accuracy: float


def collapsed(labels: Ints, predictions: Ints, K: int, robust: float | None) -> Collapse:
    """Judge whether accuracy is bought by answering one class.

    Any of these is a sign: one class gets at least 95 % of the answers; the lower bound of balanced
    accuracy does not exceed chance by two points; accuracy is within half a point of the best
    constant predictor's with at least 90 % of the answers in one class; a gradient attack takes
    less than one point although macro-F1 is poor.

    Little data must not look like collapse, so:

    - the bound of balanced accuracy is not used below 10 K images, and every other sign found there
      says how few images it rests on;
    - where at least 95 % of the labels are of the most predicted class, a perfect classifier would
      answer it as often, so how often it is answered is no sign, and balanced accuracy has to tell.
      Where all labels are of that class, nothing can.

    Args:
        labels: (n,) in [0, K).
        predictions: answers to the clean images, (n,) or (n, draws), in [-1, K).
        K: number of classes.
        robust: accuracy in [0, 1] under a gradient attack, None where none was run.
    """
    counts = tally(labels, predictions, K)
    balanced = cluster_bootstrap(labels, predictions, K, balanced_accuracy)
    f1 = cluster_bootstrap(labels, predictions, K, macro_f1)
    accuracy = float(counts[0].sum() / counts[1].sum())
    signs = [*_share_signs(counts, accuracy), *_unmoved_sign(accuracy, robust, f1.value, K)]
    if len(labels) >= 10 * K:
        signs += _chance_sign(balanced, K)
    elif signs:
        signs.append(f"on {len(labels)} images only, where {10 * K} are needed to be sure")
    constant = constant_accuracy(labels, K)
    return Collapse(
        bool(signs), "; ".join(signs), _largest_share(counts)[1], balanced, f1, constant
    )


def _largest_share(counts: npt.NDArray[np.int64]) -> tuple[int, float]:
    """The most predicted class and its share of all answers."""
    _, support, given = counts
    return int(given.argmax()), float(given.max() / support.sum())


def _share_signs(counts: npt.NDArray[np.int64], accuracy: float) -> Iterator[str]:
    top, share = _largest_share(counts)
    label_shares = counts[1] / counts[1].sum()
    if label_shares[top] >= 0.95:
        return
    if share >= 0.95:
        yield f"class {top} gets {share:.1%} of the answers"
    constant = float(label_shares.max())
    if abs(accuracy - constant) <= 0.005 + _ROUNDING and share >= 0.9:
        yield (
            f"accuracy {accuracy:.2%} is that of a constant answer, {constant:.2%}, and class "
            f"{top} gets {share:.1%}"
        )


def _chance_sign(balanced: Estimate, K: int) -> Iterator[str]:
    if balanced.low <= 1 / K + 0.02 + _ROUNDING:
        bound = f"balanced accuracy {balanced.value:.1%} may be as low as {balanced.low:.1%}"
        yield f"{bound}, not two points above chance ({1 / K:.1%})"


def _unmoved_sign(accuracy: float, robust: float | None, f1: float, K: int) -> Iterator[str]:
    # 2/K is twice what a constant answer can reach. For two classes that would be 1, which every
    # classifier is under: there the limit lies half way between the constant answer and the perfect
    # one (for K = 3 the two rules agree).
    limit = min(2 / K, (1 + 1 / K) / 2)
    if robust is not None and accuracy - robust < 0.01 - _ROUNDING and f1 < limit:
        yield (
            f"a gradient attack takes {accuracy - robust:.2%}, under one point, with macro-F1 "
            f"{f1:.1%} < {limit:.1%}"
        )


# Verdicts over draws and attacks ------------------------------------------------------------------


def worst_case(correct: Sequence[Bools]) -> Floats:
    """Each image's share of right answers under the attack that is worst for it (Carlini et al.,
    arXiv 1902.06705).

    With one judged draw an attack, the defense is taken as deterministic: an image is right if it
    is right under all attacks. Otherwise the draws are split into even and odd ones: the attack is
    chosen on one half (lowest share right; of equals the one that is lower over all images) and its
    share reported on the other, both ways round, and the two are averaged. So the luck of the draws
    that made an attack look worst cannot enter the number, and with one attack it is that attack's
    own mean.

    Args:
        correct: for each attack, bool (n, draws). The number of draws is 1 for all attacks or at
            least 2 for each.

    Returns:
        float64 (n,) in [0, 1].
    """
    draws = {judged.shape[1] for judged in correct}
    if len({len(judged) for judged in correct}) != 1 or 0 in draws or (1 in draws and draws != {1}):
        raise ValueError(
            f"verdicts of shape {[judged.shape for judged in correct]} do not go together: give "
            "each attack the same images, and one draw for all attacks or at least two for each"
        )
    if draws == {1}:
        always: Bools = np.all([judged[:, 0] for judged in correct], axis=0)
        return always.astype(np.float64)
    even, odd = ([judged[:, start::2].mean(axis=1) for judged in correct] for start in (0, 1))
    return (_chosen(even, odd) + _chosen(odd, even)) / 2


def _chosen(choose: list[Floats], report: list[Floats]) -> Floats:
    """Choose each image's attack by one list of shares (n,), report its share from the other."""
    strongest_first = sorted(range(len(choose)), key=lambda attack: float(choose[attack].mean()))
    chosen = np.argmin([choose[attack] for attack in strongest_first], axis=0)
    shares: Floats = np.array([report[attack] for attack in strongest_first])[
        chosen, np.arange(chosen.size)
    ]
    return shares


@dataclass(frozen=True)
class DrawAccuracies:
    """Accuracy under three laws of judging the same draws, each with its Wilson interval over
    images.

    Attributes:
        mean: the mean share of right draws; its interval is conservative.
        all_draws: the share of images right in every draw; one wrong draw breaks an image.
        majority: the share of images right in more than half of their draws; a tie counts as wrong.
    """

    mean: Estimate
    all_draws: Estimate
    majority: Estimate


def judge(correct: Bools) -> DrawAccuracies:
    """Judge bool verdicts (n, draws), both at least 1."""
    if correct.ndim != 2 or correct.size == 0:
        raise ValueError(f"verdicts of shape {correct.shape} must be (n, draws), not empty")
    n, draws = correct.shape
    right = correct.sum(axis=1)
    return DrawAccuracies(
        mean=wilson(float(right.sum() / draws), n),
        all_draws=wilson(int((right == draws).sum()), n),
        majority=wilson(int((2 * right > draws).sum()), n),
    )
