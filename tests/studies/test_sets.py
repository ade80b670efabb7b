"""How two sets of points compare."""

import numpy as np
import pytest

from bench.studies import sets

GENERATOR = np.random.Generator(np.random.Philox(0))


CLOUD = GENERATOR.normal(size=(400, 2))


def test_coverage_and_recall_of_four_points():
    real = np.array([[0.0, 0], [1, 0], [10, 0], [12, 0]])
    made = np.array([[0.5, 0], [0.6, 0], [20, 0]])
    assert sets.coverage(real, made, 1).tolist() == [True, True, False, False]
    # The balls of made points have radii 0.1, 0.1 and 19.4.
    assert sets.recall(real, made, 1).tolist() == [False, True, True, True]
    assert sets.radii(real, 2).tolist() == [10, 9, 9, 11]
    assert sets.nearest(made, real) == pytest.approx([0.5, 0.4, 8])


def test_equal_distributions_cover_each_other_and_a_collapsed_set_does_not():
    other, point = (
        GENERATOR.normal(size=(400, 2)),
        np.zeros((400, 2)) + 1e-3 * GENERATOR.normal(size=(400, 2)),
    )
    assert sets.coverage(CLOUD, other).mean() > 0.9 and sets.recall(CLOUD, other).mean() > 0.9
    assert sets.coverage(CLOUD, point).mean() < 0.1 and sets.recall(CLOUD, point).mean() < 0.1
    # One far point with a wide ball raises recall and not coverage.
    stray = np.concatenate([point, [[100.0, 0], [-100, 0], [0, 100], [0, -100], [90, 90]]])
    assert sets.recall(CLOUD, stray).mean() > 0.5 and sets.coverage(CLOUD, stray).mean() < 0.1


def test_k_means_finds_far_clusters():
    points = np.concatenate([CLOUD * 0.01 + centre for centre in ([0.0, 0], [5, 5], [-5, 5])])
    centres = min(
        (sets.k_means(points, 3, seed) for seed in range(5)),
        key=lambda c: sets.nearest(points, c).sum(),
    )
    assert sorted(centres.round(1).tolist()) == [[-5.0, 5.0], [-0.0, 0.0], [5.0, 5.0]]
    assert np.bincount(sets.binned(points, centres)).tolist() == [400] * 3
    assert np.array_equal(sets.k_means(points, 3, 1), sets.k_means(points, 3, 1))


def test_bins_of_two_histograms():
    real, made = np.repeat([0, 1], [50, 50]), np.repeat([0, 2], [50, 50])
    bins = sets.compare_bins(real, made, 3)
    assert bins.different == pytest.approx(2 / 3)
    assert bins.divergence == pytest.approx(0.5)
    assert sets.compare_bins(real, real, 3) == sets.Bins(0.0, pytest.approx(0.0))
    assert sets.compare_bins(np.zeros(9, int), np.ones(9, int), 2).divergence == pytest.approx(1.0)
    # z of 60 against 46 in 100 is 1.984, of 60 against 47 1.842.
    for share, different in ((46, 1.0), (47, 0.0)):
        few = np.repeat([0, 1], [share, 100 - share])
        assert sets.compare_bins(np.repeat([0, 1], [60, 40]), few, 2).different == different


def test_spread_within_clusters():
    wide = np.concatenate([CLOUD * (1.0, 2.0) + centre for centre in ([0.0, 0], [50, 0])])
    assert sets.residual(wide, 2) == pytest.approx(
        np.square(CLOUD * (1.0, 2.0) - (CLOUD * (1.0, 2.0)).mean(0)).sum(1).mean()
    )
    assert sets.mixture_variance(wide, 2) == pytest.approx(
        (CLOUD * (1.0, 2.0)).var(0).sum(), rel=1e-6
    )
    assert sets.mixture_variance(wide * 2, 2) == pytest.approx(4 * sets.mixture_variance(wide, 2))


def test_a_mixture_separates_overlapping_distributions():
    """Where hard bins cut both tails off, the mixture does not."""
    near = np.concatenate([CLOUD[:, :1], CLOUD[:, :1] + 3])
    assert sets.residual(near, 2) < 0.85 < sets.mixture_variance(near, 2) < 1.25


def test_principal_components():
    mean, directions = sets.principal(np.pad(CLOUD * (1, 5), ((0, 0), (1, 0))) + 7)
    assert mean == pytest.approx([7, *(7 + CLOUD.mean(0) * (1, 5))])
    assert np.allclose(directions.T, [[0, 0, 1], [0, 1, 0]], atol=0.1)


def test_area_under_the_curve():
    assert sets.area_under_curve(np.array([3.0, 1]), np.array([2.0, 1])) == pytest.approx(
        (1 + 1 + 0 + 0.5) / 4
    )
    assert sets.area_under_curve(CLOUD[:, 0] + 10, CLOUD[:, 1]) == 1
    low, high = sets.area_interval(CLOUD[:, 0] + 0.3, CLOUD[:, 1], resamples=200)
    assert 0.5 < low < sets.area_under_curve(CLOUD[:, 0] + 0.3, CLOUD[:, 1]) < high < 0.68
