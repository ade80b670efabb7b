"""How two sets of points compare: whether one covers the other, and where it is denser. Points are
rows (n, d), float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LLOYD_STEPS, EM_STEPS = 50, 50
_SMALLEST_VARIANCE = 1e-6


def distances(a: Floats, b: Floats) -> Floats:
    """Euclidean distances (n, m) of points (n, d) and (m, d)."""
    # |a - b|^2 = |a|^2 + |b|^2 - 2 <a, b>
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    lengths: Floats = np.sqrt(squares.clip(min=0))
    return lengths


def nearest(a: Floats, b: Floats) -> Floats:
    """Distance of each point of `a` to the nearest one of `b`, (n,)."""
    shortest: Floats = distances(a, b).min(1)
    return shortest


def radii(points: Floats, k: int) -> Floats:
    """Distance of each point to its k-th nearest neighbour among the others, (n,)."""
    apart = distances(points, points)
    np.fill_diagonal(apart, np.inf)
    kth: Floats = np.partition(apart, k - 1, axis=1)[:, k - 1]
    return kth


def coverage(real: Floats, made: Floats, k: int = 5) -> npt.NDArray[np.bool_]:
    """Which real points have a made one within the distance of their k-th nearest real neighbour
    (Naeem et al. 2020, eq. 6).
    """
    covered: npt.NDArray[np.bool_] = nearest(real, made) <= radii(real, k)
    return covered


def recall(real: Floats, made: Floats, k: int = 5) -> npt.NDArray[np.bool_]:
    """Which real points lie within the distance of some made point to its k-th nearest made
    neighbour.

    Kynkäänniemi et al. 2019, eq. 2, on the classifier's features or pixels instead of VGG's.
    """
    within: npt.NDArray[np.bool_] = np.any(distances(real, made) <= radii(made, k)[None], axis=1)
    return within


def k_means(points: Floats, k: int, seed: int = 0) -> Floats:
    """Centres (k, d) after Lloyd's steps from k points drawn without repetition; an empty bin keeps
    its centre.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    centres = points[generator.permutation(len(points))[:k]].copy()
    for _ in range(LLOYD_STEPS):
        bins = binned(points, centres)
        counts = np.bincount(bins, minlength=k)
        sums = np.zeros_like(centres)
        np.add.at(sums, bins, points)
        moved = np.where(counts[:, None] > 0, sums / counts.clip(min=1)[:, None], centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def binned(points: Floats, centres: Floats) -> Ints:
    """The number of each point's nearest centre, (n,)."""
    numbers: Ints = distances(points, centres).argmin(1)
    return numbers


@dataclass(frozen=True)
class Bins:
    """Two histograms over the same bins.

    Attributes:
        different: share of the bins whose two proportions differ at the 5 % level: NDB/K
            (Richardson and Weiss 2018); equal distributions give about 0.05.
        divergence: Jensen and Shannon's, in bits: 0 for equal histograms, 1 for disjoint ones.
    """

    different: float
    divergence: float


def compare_bins(real: Ints, made: Ints, k: int) -> Bins:
    """Compare the bins (n,) and (m,) of two sets; the test is the two-proportion z-test."""
    p, q = (np.bincount(bins, minlength=k) / len(bins) for bins in (real, made))
    pooled = (p * len(real) + q * len(made)) / (len(real) + len(made))
    # The two-proportion z-test with the pooled standard error.
    error = np.sqrt(pooled * (1 - pooled) * (1 / len(real) + 1 / len(made)))
    z = np.abs(p - q) / np.where(error > 0, error, 1)
    # JSD = H((p + q) / 2) - (H(p) + H(q)) / 2, in bits.
    middle = (p + q) / 2
    return Bins(
        float((z > 1.959964).mean()), float(_entropy(middle) - (_entropy(p) + _entropy(q)) / 2)
    )


def _entropy(shares: Floats) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log2(positive)).sum())


def residual(points: Floats, k: int, seed: int = 0) -> float:
    """Mean squared distance of points to the nearest of k centres fitted to them: how much they
    vary within clusters.
    """
    return float(np.square(nearest(points, k_means(points, k, seed))).mean())


def mixture_variance(points: Floats, k: int, seed: int = 0) -> float:
    """Trace of the covariance within a mixture of k normal distributions with diagonal covariances,
    the mean over its components by weight.

    Fitted by expectation maximisation from k-means; variances are kept above 1e-6.
    """
    shares = np.eye(k)[binned(points, k_means(points, k, seed))]
    for _ in range(EM_STEPS):
        weights, means, variances = _maximised(points, shares)
        shares = _expected(points, weights, means, variances)
    return float((weights * variances.sum(1)).sum())


def _maximised(points: Floats, shares: Floats) -> tuple[Floats, Floats, Floats]:
    """The M step: weights, means and variances of the components, given each point's shares."""
    mass = shares.sum(0).clip(min=1e-12)
    means = shares.T @ points / mass[:, None]
    variances = (shares.T @ np.square(points) / mass[:, None] - np.square(means)).clip(
        min=_SMALLEST_VARIANCE
    )
    return mass / len(points), means, variances


def _expected(points: Floats, weights: Floats, means: Floats, variances: Floats) -> Floats:
    """The E step: each point's shares (n, k), proportional to weight times density."""
    precisions = 1 / variances
    # sum over dimensions of (x - mean)^2 / variance, multiplied out.
    squares = (
        np.square(points) @ precisions.T
        - 2 * points @ (means * precisions).T
        + (np.square(means) * precisions).sum(1)
    )
    # log (weight * density), up to a constant.
    logs = np.log(weights) - (squares + np.log(variances).sum(1)) / 2
    powers = np.exp(logs - logs.max(1, keepdims=True))
    shares: Floats = powers / powers.sum(1, keepdims=True)
    return shares


def principal(points: Floats) -> tuple[Floats, Floats]:
    """The mean (d,) and the first two principal directions (d, 2) of points, each with its largest
    entry positive.
    """
    mean = points.mean(0)
    directions = np.linalg.svd(points - mean, full_matrices=False)[2][:2].T
    return mean, directions * np.sign(
        directions[np.abs(directions).argmax(0), range(directions.shape[1])]
    )


def area_under_curve(members: Floats, others: Floats) -> float:
    """How often a member scores higher than another one, ties counted half."""
    from scipy.stats import rankdata

    # The Mann-Whitney U statistic, (sum of ranks - m (m + 1) / 2) / (m n).
    ranks = rankdata(np.concatenate([members, others]))[: len(members)]
    return float(
        (ranks.sum() - len(members) * (len(members) + 1) / 2) / (len(members) * len(others))
    )


def area_interval(
    members: Floats, others: Floats, seed: int = 0, resamples: int = 2_000
) -> tuple[float, float]:
    """The percentile 95 % bootstrap of `area_under_curve`; members and others are drawn apart."""
    generator = np.random.Generator(np.random.Philox(seed))
    areas = [
        area_under_curve(_redrawn(members, generator), _redrawn(others, generator))
        for _ in range(resamples)
    ]
    low, high = np.quantile(areas, (0.025, 0.975))
    return float(low), float(high)


def _redrawn(values: Floats, generator: np.random.Generator) -> Floats:
    return values[generator.integers(len(values), size=len(values))]
