"""Random fields drawn towards BatchNorm statistics: weights, moves and images against known
answers.
"""

import numpy as np
import pytest
import torch
from bench_defenses.datafree.datafreeshield import DataFreeShieldParams
from bench_defenses.datafree.fields import (
    FieldRecipe,
    canvas,
    draw_population,
    moved,
    rendered,
    resampled,
    smoothed,
    tilt,
)
from bench_defenses.datafree.images import SHEET, synthetic_images
from torch import nn

from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import BuildNoise, Noise, Stream

SHAPE = (1, 12, 12)
NOISE = BuildNoise(3)


class Bright(nn.Module):
    """Two classes, dark and bright; its BatchNorm has seen images of mean 0.15."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False)
        self.norm.running_mean.fill_(0.15)
        self.norm.running_var.fill_(0.04)

    def forward(self, images):
        level = self.norm(images).mean((1, 2, 3))
        return torch.stack([-level, level], 1)


def net():
    return Classifier(Bright(), 2).eval().requires_grad_(False)


def features(n=4000, shift=0.3):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) - torch.tensor(
        [shift, 0.0]
    )


def test_the_weights_of_a_gaussian_are_its_exponential_tilt():
    # N(-m, 1) tilted to mean 0 is weighted by exp(m x): closed form of the relative-entropy
    # projection.
    x = features(20_000)
    weights = tilt(x, wanted=100)
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert (weights @ x).abs().max() < 0.02
    expected = torch.softmax(0.3 * x[:, 0], 0)
    assert torch.corrcoef(torch.stack([weights, expected]))[0, 1] > 0.99


def test_the_weights_keep_the_wanted_effective_sample_size():
    x = features(shift=2.5)
    loose, tight = tilt(x, wanted=20), tilt(x, wanted=2000)
    size = [float(1 / one.square().sum()) for one in (loose, tight)]
    assert 20 <= size[0] < 2000 <= size[1]
    assert (loose @ x).norm() < (tight @ x).norm()


def test_the_comb_draws_each_by_its_weight():
    weights = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05] + [0.0] * 15)
    for offset in (0.1, 0.4, 0.9):
        counts = torch.bincount(resampled(weights, offset), minlength=20)
        assert counts[:5].tolist() == [10, 0, 6, 3, 1]
    uneven = torch.softmax(features(50)[:, 0], 0)
    counts = torch.bincount(resampled(uneven, 0.7), minlength=50)
    assert counts.sum() == 50 and (counts - 50 * uneven).abs().max() < 1


@pytest.mark.parametrize("fresh", [False, True])
def test_a_moved_population_keeps_its_distribution(fresh):
    n = 3000
    noise = Noise.of(0, Stream.BUILD, range(n))
    white = noise.normal("w", (4, 4))
    traits, after = moved(
        noise.uniform("t", (3,)), white, FieldRecipe(n, persistence=0.8), noise.at("move"), fresh
    )
    assert (
        traits.min() >= 0
        and traits.max() <= 1
        and traits.mean().item() == pytest.approx(0.5, abs=0.02)
    )
    assert after.var().item() == pytest.approx(1, abs=0.03)
    assert (after * white).mean().item() == pytest.approx(0 if fresh else 0.8, abs=0.03)


def test_smoothing_is_a_gaussian_blur():
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1
    blurred = smoothed(point, torch.tensor([[[2.0]]]))[0]
    across = torch.arange(41) - 20
    assert blurred.sum().item() == pytest.approx(1, abs=1e-4)
    assert (blurred.sum(0) * across**2).sum().item() == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 16, 20)])
def test_images_lie_between_their_two_colours(shape):
    noise = Noise.of(1, Stream.BUILD, range(64))
    traits = noise.uniform("t", (10 + 2 * shape[0],))
    seen = rendered(traits, noise.normal("w", canvas(shape)), shape)
    assert seen.shape == (64, *shape) and seen.min() >= 0 and seen.max() <= 1
    ground, ink = ((2 * part - 0.5).clamp(0, 1) for part in traits[:, 10:].split(shape[0], 1))
    low, high = torch.minimum(ground, ink), torch.maximum(ground, ink)
    assert (seen.flatten(2).amin(2) >= low - 1e-5).all() and (
        seen.flatten(2).amax(2) <= high + 1e-5
    ).all()


def test_the_population_takes_on_the_statistics():
    rounds = []
    population = draw_population(net(), SHAPE, FieldRecipe(400, rounds=6), NOISE, rounds.append)
    assert (
        rounds == [1, 2, 3, 4, 5, 6]
        and len(population.effective) == 5
        and min(population.effective) >= 0.1
    )
    assert population.gap_last < 0.35 * population.gap_first
    # The running mean lies on the dark side; equal class shares pull the other way, and both are
    # met half-way.
    assert population.images.mean().item() == pytest.approx(0.15, abs=0.08)
    again = draw_population(net(), SHAPE, FieldRecipe(400, rounds=6), NOISE, rounds.append)
    assert torch.equal(again.images, population.images)


def test_fields_are_an_artifact_labelled_by_the_classifier(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    made = synthetic_images(net(), SHAPE, FieldRecipe(60, rounds=3), NOISE)
    assert torch.equal(made.labels, made.logits.argmax(1)) and made.images.shape == (60, *SHAPE)
    assert np.isclose(sum(made.about["class_shares"]), 1) and (made.folder / SHEET).exists()
    assert synthetic_images(net(), SHAPE, FieldRecipe(60, rounds=3), NOISE).folder == made.folder
    assert synthetic_images(net(), SHAPE, FieldRecipe(60, rounds=4), NOISE).folder != made.folder


def test_a_class_that_no_field_is_seen_as_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    blind = net()
    blind.network.norm.running_mean.fill_(9.0)
    with pytest.raises(BadInput, match="sees class 1 in none of 60 random fields"):
        synthetic_images(blind, SHAPE, FieldRecipe(60, rounds=2), NOISE)


def test_parameters_of_the_inversion_are_refused():
    assert DataFreeShieldParams(
        synthesis="fields", scale="smoke"
    ).synthesis_recipe() == FieldRecipe(100)
    for given in (
        {"iterations": 5},
        {"space": "pixels"},
        {"synthesis_rate": 0.2},
        {"keep": "last"},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(given))} belongs to synthesis=inversion"):
            DataFreeShieldParams(synthesis="fields", **given)
