"""The vote over Gaussian noise."""

import math

import pytest
import torch
from bench_defenses.testtime.smoothing import SmoothingParams, VotingUnderNoise
from scipy.stats import norm
from torch import nn

from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream
from bench.randomness import read_randomness
from bench.victim import Victim
from tests.defenses.testtime.helpers import noise

WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 1.5])


class Scored(nn.Module):
    """Two classes by the sign of w . x, as sure as `steep` says."""

    def __init__(self, steep=1.0):
        super().__init__()
        self.steep = steep

    def forward(self, images):
        score = self.steep * images.flatten(1) @ WEIGHTS
        return torch.stack([-score, score], 1)


def smoothed(draws, sigma=0.5, steep=1.0):
    return VotingUnderNoise(
        Classifier(Scored(steep), 2).eval(), SmoothingParams(sigma=sigma, draws=draws)
    )


def at(*distances):
    """Images at these signed distances from the boundary."""
    unit = WEIGHTS / WEIGHTS.norm()
    return torch.stack([distance * unit for distance in distances]).reshape(-1, 1, 2, 2)


def single_answers(defended, images, own):
    """Logits of each draw, by the classifier itself: (draws, n, K)."""
    inner, sigma = defended.classifier, defended.sigma
    return torch.stack(
        [
            inner(images + sigma * own.at("noise").at(str(i)).normal("gauss", (1, 2, 2)), own)
            for i in range(defended.draws)
        ]
    )


def test_the_answer_is_the_vote_and_the_mean_softmax_decides_between_equal_votes():
    # A steep classifier is as sure of every draw: its mean softmax and its votes part ways where
    # one is less steep.
    defended, images, own = smoothed(6), at(*torch.linspace(-0.6, 0.6, 60).tolist()), noise(60)
    logits = defended(images, own)
    each = single_answers(defended, images, own)
    votes = (each.argmax(2) == 1).sum(0)
    mean = each.softmax(2).mean(0)
    expected = torch.where(votes == 3, mean.argmax(1), (votes > 3).long())
    assert torch.equal(logits.argmax(1), expected)
    assert (votes == 3).any() and (logits.argmax(1) != mean.argmax(1)).any()
    counts = torch.stack([6 - votes, votes], 1)
    torch.testing.assert_close(logits.exp() * 7, counts + 0.99 * mean)


def test_the_vote_comes_near_its_probability():
    defended = smoothed(500)
    for distance in (-0.3, 0.2, 0.6):
        share = (single_answers(defended, at(distance), noise(1)).argmax(2) == 1).float().mean()
        exact = norm.cdf(distance / 0.5)
        assert share.item() == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 500))


def test_the_gradient_is_that_of_the_mean_softmax_and_does_not_die_where_all_agree():
    defended, images, own = smoothed(5, sigma=0.01, steep=6.0), at(1.0, -1.0), noise(2)
    images.requires_grad_(True)
    labels = torch.tensor([1, 0])
    loss = nn.functional.cross_entropy(defended(images, own), labels, reduction="none").sum()
    (slope,) = torch.autograd.grad(loss, images)
    mean = single_answers(defended, images, own).softmax(2).mean(0)
    aim = -mean[[0, 1], labels].log().sum()
    (exact,) = torch.autograd.grad(aim, images)
    ours, theirs = (
        nn.functional.normalize(one.flatten(1).double(), eps=0) for one in (slope, exact)
    )
    assert (slope.flatten(1).norm(dim=1) > 0).all()
    assert ((ours * theirs).sum(1) > 0.999).all()


def test_answers_depend_on_the_noise_alone_and_replay_fixes_its_stage():
    defended, images = smoothed(3), at(0.05, 0.1, -0.1)
    assert torch.equal(defended(images, noise(3)), defended(images, noise(3)))
    assert not torch.equal(defended(images, noise(3)), defended(images, noise(3, 1)))
    frozen = [Noise.of(0, Stream.ATTACK, range(3), draw, frozen=("noise",)) for draw in (0, 1)]
    assert torch.equal(*(defended(images, one) for one in frozen))
    victim = Victim(defended, torch.arange(3).numpy(), randomness=read_randomness("replay"))
    assert victim.deterministic and victim.stochastic


def test_it_votes_over_what_bench_certify_is_told():
    defended, images = smoothed(4), at(0.1, -0.2)
    vote = defended.gaussian_vote()
    assert vote.sigma == 0.5
    assert torch.equal(vote.base(images, noise(2)), defended.classifier(images))


def test_other_views_are_told():
    with pytest.raises(BadInput, match="offers logits"):
        smoothed(2).forward_pass("full", "features")
