"""Synthesis of one batch: losses, coefficients, targets, iterates."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from bench_defenses.datafree import synthesis
from bench_defenses.datafree.synthesis import (
    Coefficients,
    gaps,
    statistics_gap,
    synthesise,
    total_variation,
)
from torch import nn

from bench.contract.toys import gratings
from bench.models.classifier import Classifier
from bench.noise import BuildNoise
from tests.defenses.datafree.helpers import NOISE, RECIPE, SHAPE


def make(net, number=0, noise=NOISE, **changes):
    return synthesise(net, SHAPE, replace(RECIPE, **changes), number, noise)


def same(a, b):
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.logits, b.logits)
        and dataclasses.replace(a, images=b.images, labels=b.labels, logits=b.logits) == b
        and torch.equal(a.labels, b.labels)
    )


def test_total_variation_of_the_worked_example():
    image = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]]])
    assert total_variation(image) == pytest.approx(math.sqrt(5) + math.sqrt(13) + 1 + 4)
    assert total_variation(image) == pytest.approx(10.8416, abs=1e-4)
    # The norm is over the whole batch, so it grows with its root.
    assert total_variation(image.repeat(4, 1, 1, 1)) == pytest.approx(2 * 10.8416, abs=1e-3)


def test_the_statistics_term_is_zero_on_the_images_that_the_running_statistics_come_from(net):
    with gaps(net) as terms:
        net(gratings(60).pixels(), NOISE)
    # SmallNet keeps the unbiased variance of its training images, seen without normalisation.
    assert len(terms) == 1
    layer, inputs = (
        nn.BatchNorm2d(2),
        torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0)),
    )
    variance, mean = torch.var_mean(inputs, (0, 2, 3), correction=0)
    assert float(statistics_gap(inputs, mean, variance)) == pytest.approx(0, abs=1e-5)
    layer.running_mean, layer.running_var = mean, variance
    with gaps(layer.eval()) as terms:
        layer(inputs), layer(inputs)
    assert len(terms) == 2 and float(terms[0]) == pytest.approx(0, abs=1e-5)
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (9, 2)])
def test_the_statistics_term_and_its_gradient_are_those_of_autograd(shape):
    generator = torch.Generator().manual_seed(0)
    inputs = (3 + torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    mean, variance = torch.tensor([3.0, 2.0]).double(), torch.tensor([1.0, 4.0]).double()
    ours = statistics_gap(inputs, mean, variance)
    v, m = torch.var_mean(inputs, [0, *range(2, len(shape))], correction=0)
    plain = (v - variance).square().sum().sqrt() + (m - mean).square().sum().sqrt()
    assert float(ours.detach()) == pytest.approx(float(plain.detach()))
    assert torch.allclose(
        torch.autograd.grad(2 * ours, inputs)[0], 2 * torch.autograd.grad(plain, inputs)[0]
    )


def test_the_gradient_at_equal_statistics_is_zero_and_no_nan():
    inputs = torch.tensor([[1.0], [3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        statistics_gap(inputs, torch.tensor([2.0]), torch.tensor([1.0])), inputs
    )
    assert gradient.tolist() == [[0.0], [0.0]]


def coefficients(number=0, **changes):
    recipe = replace(RECIPE, images=5_000, **changes)
    noise = NOISE.numbered("batch", [number])
    return synthesis.draw_coefficients(recipe, noise, len(recipe.rows(number)))


def test_each_batch_draws_its_coefficients_once():
    drawn = [coefficients(k, coefficients="dss") for k in range(200)]
    cls, bn = torch.tensor([one.cls for one in drawn]), torch.tensor([one.bn for one in drawn])
    for factor in (cls, bn):
        assert 0 <= float(factor.min()) < 0.05 and 0.95 < float(factor.max()) < 1
    assert abs(float(torch.corrcoef(torch.stack([cls, bn]))[0, 1])) < 0.2, "two numbers, not one"
    assert len({one.tv for one in drawn}) == 1
    assert drawn[7] == coefficients(7, coefficients="dss")


def test_the_kinds_of_coefficients():
    tv = 2.5e-5 * math.sqrt(250 / 5)
    assert coefficients(coefficients="fixed") == Coefficients(1.0, 1.0, pytest.approx(tv))
    linear = [coefficients(k, coefficients="linear") for k in range(20)]
    assert all(one.cls + one.bn == pytest.approx(1) and 0 <= one.cls < 1 for one in linear)
    assert len({one.cls for one in linear}) == 20
    drawn = [coefficients(k, tv_random=True).tv / tv for k in range(100)]
    assert 0 <= min(drawn) < 0.1 and 0.9 < max(drawn) < 1
    assert coefficients(batch=250).tv == pytest.approx(2.5e-5)


def test_targets():
    def targets(kind, images=14):
        return synthesis.all_targets(
            replace(RECIPE, images=images, targets=kind), 3, NOISE
        ).tolist()

    assert targets("per_batch") == [0] * 5 + [1] * 5 + [2] * 4
    assert targets("balanced", 7) == [0, 1, 2, 0, 1, 2, 0]
    uniform = torch.bincount(torch.tensor(targets("uniform", 600)))
    assert len(uniform) == 3 and int(uniform.min()) > 150


@pytest.mark.parametrize("space", ["normalised", "pixels", "sigmoid"])
def test_synthesis_lowers_the_loss_and_gives_images(net, space):
    begin, end = make(net, space=space, iterations=1), make(net, space=space, iterations=40)
    assert end.losses.total < 0.8 * begin.losses.total
    assert (
        end.images.shape == (5, *SHAPE)
        and float(end.images.min()) >= 0
        and float(end.images.max()) <= 1
    )
    assert end.clamped == 0 if space != "normalised" else 0 < begin.clamped < 1
    assert torch.equal(end.logits, net(end.images, NOISE)) and end.labels.tolist() == [0] * 5
    assert end.right_after == int((end.logits.argmax(1) == 0).sum())


def test_a_batch_depends_on_its_number_and_seed_alone(net):
    again = make(net, 1)
    make(net, 0)
    assert same(make(net, 1), again)
    assert not torch.equal(make(net, 2).images, again.images)
    assert not torch.equal(make(net, 1, BuildNoise(1)).images, again.images)
    assert not torch.equal(make(net, 1, NOISE.at("other")).images, again.images)


def test_the_jitter_reaches_as_far_as_it_says():
    offsets = torch.tensor(synthesis.jitter_offsets(replace(RECIPE, iterations=500), NOISE, 0))
    assert offsets.min(0).values.tolist() == [-2, -2] and offsets.max(0).values.tolist() == [2, 2]
    assert int((offsets[:, 0] != offsets[:, 1]).sum()) > 300
    assert not torch.tensor(synthesis.jitter_offsets(replace(RECIPE, jitter=0), NOISE, 0)).any()
    assert synthesis.jitter_offsets(RECIPE, NOISE, 0) != synthesis.jitter_offsets(RECIPE, NOISE, 1)


class Scripted(synthesis.Inversion):
    """Its losses without jitter come from a list."""

    script = (5.0, 1.0, 3.0)

    def losses(self, pixels):
        self.iterates = [*getattr(self, "iterates", []), pixels.clone()]
        return synthesis.Losses(0, 0, 0, self.script[len(self.iterates) - 1])


def test_the_best_iterate_is_kept_as_it_was(net, monkeypatch):
    made = []

    def scripted(*arguments):
        made.append(Scripted(*arguments))
        return made[-1]

    monkeypatch.setattr(synthesis, "Inversion", scripted)
    best = make(net, space="pixels")
    assert best.iteration == 8 and best.losses.total == 1.0
    first = made[0].iterates
    assert torch.equal(best.images, first[1]), "not the live tensor, which went on"
    assert not torch.equal(first[1], first[2])
    last = make(net, space="pixels", keep="last")
    assert last.iteration == 12 and len(made[1].iterates) == 1
    assert torch.equal(last.images, first[2])


def test_the_last_step_may_be_kept_too(net):
    assert make(net, iterations=7, every=50).iteration == 7


def test_released_space_is_clamped_only_at_the_end(net):
    # Pixels are six times as far from the mean as under the usual deviation.
    wide = Classifier(net.network, 3, mean=(0.5,) * 3, std=(0.6, 1.2, 0.6)).eval()
    batch = make(wide.requires_grad_(False), space="normalised", iterations=1, keep="last")
    assert batch.clamped > 0.3 and set(batch.images.unique()[[0, -1]].tolist()) == {0.0, 1.0}
