"""Certificates of a vote over Gaussian noise: closed forms of a linear model, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom, binomtest, norm

from bench.certify.vote import (
    Confidence,
    SmoothedVote,
    least_probability,
    needed_radius,
    radius_of,
    refutes,
)
from bench.defense import GaussianVote
from bench.errors import BadInput
from bench.threat import ThreatModel

SHAPE, SIGMA = (1, 2, 2), 0.5
WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 1.5])


def _linear(images, noise):
    """Class 1 on the side of w . x > 0."""
    score = images.flatten(1) @ WEIGHTS
    return torch.stack([torch.zeros_like(score), score], 1)


def _vote(confidence=None, root=0, base=_linear):
    return SmoothedVote(GaussianVote(SIGMA, base), confidence or Confidence(), 2, root)


def _at(distance):
    """The image at this signed L2 distance from the boundary."""
    return (distance * WEIGHTS / WEIGHTS.norm()).reshape(SHAPE)


@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.001])
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_the_bound_is_clopper_and_pearsons(alpha, n):
    for k in {0, 1, n // 2, n - 1, n}:
        bound = least_probability(k, n, alpha)
        two_sided = binomtest(k, n).proportion_ci(1 - 2 * alpha, "exact")
        assert bound == pytest.approx(two_sided.low, abs=1e-12)
        if k:
            assert bound == pytest.approx(beta.ppf(alpha, k, n - k + 1), abs=1e-12)
            # At the bound itself, k successes or more have probability alpha.
            assert binom.sf(k - 1, n, bound) == pytest.approx(alpha, rel=1e-9)
    assert least_probability(n, n, alpha) == pytest.approx(alpha ** (1 / n))


def test_the_radius_of_the_exact_probability_is_the_distance_to_the_boundary():
    for distance in (0.1, 0.4, 1.0):
        exact = norm.cdf(distance / SIGMA)
        assert radius_of(exact, SIGMA) == pytest.approx(distance)
    assert radius_of(0.5, SIGMA) == 0 == radius_of(0.2, SIGMA)


def test_the_radius_stays_below_the_distance_and_comes_near_it():
    errors = {}
    for n in (100, 10_000):
        vote = _vote(Confidence(alpha=0.001, n0=50, n=n))
        for distance in (0.3, 0.6):
            found = vote.certify(_at(distance), 7)
            assert found.chosen == 1
            assert found.radius < distance
            errors[n, distance] = distance - found.radius
    for distance in (0.3, 0.6):
        assert errors[10_000, distance] < 0.04 < errors[100, distance]
    assert _vote().certify(_at(-0.4), 7).chosen == 0


def test_the_bound_holds_as_often_as_it_says():
    """alpha = 0.2: over 400 images at one distance, at most a fifth of the radii lie above it, and
    not many fewer, since the bound is exact but for steps of one success.
    """
    vote = _vote(Confidence(alpha=0.2, n0=1, n=200))
    radii = [vote.certify(_at(0.3), image, None) for image in range(400)]
    above = sum(one.radius > 0.3 for one in radii if one.chosen == 1)
    seen = sum(one.chosen == 1 for one in radii)
    assert binom.cdf(above - 1, seen, 0.2) < 0.999
    assert binom.cdf(above, seen, 0.1) > 0.01


def test_an_image_near_the_boundary_is_abstained_on():
    found = _vote().certify(_at(0.01), 3)
    assert found.radius == 0 and found.successes > 0


def test_no_more_is_drawn_where_the_wrong_class_is_chosen():
    asked = []

    def base(images, noise):
        asked.append(len(images))
        return _linear(images, noise)

    found = _vote(base=base).certify(_at(0.5), 3, label=0)
    assert (found.chosen, found.successes, found.radius) == (1, 0, 0.0)
    assert sum(asked) == Confidence().n0


def test_draws_belong_to_the_image_and_to_the_seed():
    counts = _vote().counts(_at(0.1), 3, "count", 500)
    assert counts.sum() == 500
    assert torch.equal(counts, _vote().counts(_at(0.1), 3, "count", 500))
    others = [(4, "count", 0), (3, "choose", 0), (3, "count", 1)]
    for image, what, root in others:
        assert not torch.equal(counts, _vote(root=root).counts(_at(0.1), image, what, 500))


def test_the_draws_that_bound_are_others_than_those_that_choose():
    """Else the class would be chosen for being lucky on the very draws that then speak for it."""
    vote = _vote(Confidence(n0=300, n=300))
    found = vote.certify(_at(0.2), 6)
    assert found.successes == vote.counts(_at(0.2), 6, "count", 300)[1]
    assert found.successes != vote.counts(_at(0.2), 6, "choose", 300)[1]


def test_a_vote_that_is_surely_wrong():
    assert _vote().is_wrong(_at(-0.4), 3, 1) and not _vote().is_wrong(_at(0.4), 3, 1)
    assert not _vote().is_wrong(_at(0.0), 3, 1)


def test_chance_explains_few_refutations():
    assert not refutes(0, 0, 0.001) and not refutes(0, 64, 0.001)
    assert not refutes(2, 64, 0.001) and refutes(10, 64, 0.001)
    assert not refutes(30, 64, 0.2)
    for k in (1, 3, 6):
        assert refutes(k, 64, 0.001) == (binom.sf(k - 1, 64, 0.002) < 1e-6)


def test_the_ball_of_another_norm_is_held_by_a_larger_one():
    assert needed_radius(ThreatModel("l2", 0.3), SHAPE) == 0.3
    assert needed_radius(ThreatModel("l1", 0.3), SHAPE) == 0.3
    assert needed_radius(ThreatModel("linf", 0.3), SHAPE) == pytest.approx(0.6)


@pytest.mark.parametrize("bad", [{"alpha": 0.0}, {"alpha": 0.5}, {"n0": 0}, {"n": 0}])
def test_what_makes_no_sense_is_told(bad):
    with pytest.raises(BadInput, match="give"):
        Confidence(**bad)


def test_the_noise_has_the_told_size():
    seen = []

    def base(images, noise):
        seen.append(images)
        return _linear(images, noise)

    _vote(base=base).counts(torch.full(SHAPE, 0.5), 0, "count", 5000)
    values = torch.cat(seen)
    assert values.std().item() == pytest.approx(SIGMA, rel=0.03)
    assert values.mean().item() == pytest.approx(0.5, abs=0.02)
    assert len(np.unique(values.numpy())) > 0.99 * math.prod(values.shape)
