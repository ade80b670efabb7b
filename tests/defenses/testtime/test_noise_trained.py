"""Smoothing after training under the noise."""

import pytest
import torch
from bench_defenses.testtime.noise_trained import NoiseTrained
from bench_defenses.testtime.smoothing import SmoothingParams, VotingUnderNoise
from torch import nn

from bench.defense import BuildSetting, DataAccess, Need
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import BuildNoise, isolated
from bench.randomness import RandomnessModel
from bench.threat import ThreatModel
from tests.defenses.testtime.helpers import noise

THREAT, SHAPE = ThreatModel("l2", 0.2), (1, 1, 2)


def _data(n=512):
    """Two classes: the first pixel tells them apart by 0.02, always; the second by 0.8, in nine
    images of ten.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (n,), generator=generator)
    shown = torch.where(torch.rand(n, generator=generator) < 0.9, labels, 1 - labels)
    pixels = torch.stack([0.5 + 0.02 * (labels - 0.5), 0.5 + 0.8 * (shown - 0.5)], 1)
    return pixels.reshape(n, *SHAPE), labels


def _classifier():
    """Sees the first pixel alone: right on every image, and lost under noise."""
    with isolated(0):
        linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[-20.0, 0.0], [20.0, 0.0]]))
        linear.bias.copy_(torch.tensor([10.0, -10.0]))
    return Classifier(nn.Sequential(nn.Flatten(), linear), 2).eval()


def _built(seed=0, **params):
    defense = NoiseTrained(draws=9, rate=0.5, **params)
    access = DataAccess(defense.needs, {Need.TRAINING_DATA: _data}, "noise-trained", THREAT, SHAPE)
    return defense.build(_classifier(), access, BuildNoise(seed))


def _accuracy(defended):
    images, labels = _data()
    return (defended(images, noise(len(images))).argmax(1) == labels).float().mean().item()


def test_training_under_noise_finds_what_noise_leaves():
    defended = _built(epochs=10)
    untrained = VotingUnderNoise(
        _classifier(), SmoothingParams(sigma=defended.sigma, draws=defended.draws)
    )
    # Per image 9 votes of 0.25 noise against 0.02 are hardly better than a coin.
    assert _accuracy(untrained) < 0.65
    assert _accuracy(defended) > 0.86
    assert defended.gaussian_vote().sigma == 0.25


def test_the_build_seed_decides_the_training():
    weights = [_built(seed, epochs=1).state_dict() for seed in (0, 0, 1)]
    first, same, other = (torch.cat([w.flatten() for w in one.values()]) for one in weights)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_no_weight_takes_gradients_and_the_classifier_is_in_evaluation_mode():
    defended = _built(epochs=1)
    assert not any(p.requires_grad for p in defended.parameters())
    assert not any(part.training for part in defended.classifier.modules())


def test_a_classifier_that_draws_itself_is_refused():
    classifier = _classifier()
    classifier.stochastic = True
    setting = BuildSetting(
        True, RandomnessModel(), THREAT, 2, SHAPE, classifier=classifier, generator=lambda: None
    )
    with pytest.raises(BadInput, match="smoothing"):
        NoiseTrained().check(setting)
