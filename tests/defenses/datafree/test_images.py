"""Synthetic images as an artifact: made once, shared, resumed."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import bench_defenses.datafree.images as images_module
import pytest
import torch
from bench_defenses.datafree.images import summary, synthetic_images
from bench_defenses.datafree.synthesis import (
    norm_layers,
    step_sizes,
    synthesise,
)
from torch import nn

from bench.contract.toys import SmallNet, gratings
from bench.models.classifier import Classifier
from bench.noise import BuildNoise, isolated
from tests.defenses.datafree.helpers import NOISE, RECIPE, SHAPE
from tests.toys import message


def test_images_are_made_once(net, cache, monkeypatch):
    first = synthetic_images(net, SHAPE, RECIPE, NOISE)
    monkeypatch.setattr(images_module, "synthesise", None)
    again = synthetic_images(net, SHAPE, RECIPE, NOISE)
    assert torch.equal(first.images, again.images) and torch.allclose(
        first.logits, net(first.images, NOISE), atol=1e-4
    )
    assert first.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "identity.json",
        "images.safetensors",
        "sheet.png",
        "synthesis.json",
    ]
    assert [one["images"] for one in first.about["batches"]] == [5, 5, 5]
    assert len({one["coefficients"]["cls"] for one in first.about["batches"]}) == 3
    assert first.about["accuracy"] == pytest.approx(
        float((first.logits.argmax(1) == first.labels).float().mean())
    )
    assert not any(layer._forward_pre_hooks for layer in norm_layers(net))


@pytest.mark.parametrize("change", [{"rate": 0.2}, {"space": "sigmoid"}, {"keep": "last"}])
def test_another_recipe_makes_other_images(net, cache, change):
    first = synthetic_images(net, SHAPE, replace(RECIPE, iterations=2), NOISE)
    other = synthetic_images(net, SHAPE, replace(RECIPE, iterations=2, **change), NOISE)
    assert other.folder != first.folder
    assert (
        synthetic_images(net, SHAPE, replace(RECIPE, iterations=2), NOISE.at("x")).folder
        != first.folder
    )


def test_an_interrupted_synthesis_goes_on_bit_for_bit(net, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "whole"))
    whole = synthetic_images(net, SHAPE, RECIPE, NOISE)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "halved"))
    asked = []

    def interrupted(*arguments):
        asked.append(arguments[3])
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return synthesise(*arguments)

    monkeypatch.setattr(images_module, "synthesise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic_images(net, SHAPE, RECIPE, NOISE)
    (work,) = (tmp_path / "halved" / "synthetic-images").glob(".work-*")
    (work / "batch-00002.safetensors").write_bytes(b"cut off")
    resumed = synthetic_images(net, SHAPE, RECIPE, NOISE)
    assert asked == [0, 1, 1, 2]
    for name in ("images", "labels", "logits"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    assert resumed.about == whole.about


def test_two_workers_share_the_batches(net, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "alone"))
    alone = synthetic_images(net, SHAPE, RECIPE, NOISE)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "shared"))
    asked, both = [], threading.Barrier(2, timeout=30)

    def meeting(*arguments):
        asked.append((arguments[3], threading.get_ident()))
        if len(asked) <= 2:
            both.wait()
        return synthesise(*arguments)

    monkeypatch.setattr(images_module, "synthesise", meeting)
    with ThreadPoolExecutor(2) as pool:
        results = list(
            pool.map(
                lambda one: synthetic_images(one, SHAPE, RECIPE, NOISE), [net, copy.deepcopy(net)]
            )
        )
    assert (
        sorted(number for number, _ in asked) == [0, 1, 2]
        and len({worker for _, worker in asked}) == 2
    )
    for one in results:
        assert (
            one.folder == results[0].folder
            and torch.equal(one.images, alone.images)
            and one.about == alone.about
        )
    assert [path.name for path in results[0].folder.parent.iterdir()] == [results[0].folder.name], (
        "no claim and no work is left"
    )


def test_the_summary_weighs_batches_by_their_images():
    facts = [
        {"clamped": 0.5, "right_before": 4, "right_after": 2},
        {"clamped": 0.0, "right_before": 1, "right_after": 1},
    ]
    about = summary(replace(RECIPE, images=6, batch=4), facts)
    assert about["clamped_pixels"] == pytest.approx(0.5 * 4 / 6)
    assert about["accuracy_before_clamping"] == pytest.approx(5 / 6) and about[
        "accuracy"
    ] == pytest.approx(3 / 6)


class Plain(nn.Module):
    def __init__(self, track):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(3, track_running_stats=False) if track else nn.Identity(), nn.Flatten()
        )
        self.head = nn.Linear(768, 3)

    def forward(self, x):
        return self.head(self.layers(x))


def test_what_cannot_be_made_is_refused_in_one_line(net):
    def refused(classifier=net, **changes):
        return message(
            lambda: synthetic_images(classifier, SHAPE, replace(RECIPE, **changes), NOISE)
        )

    with isolated(0):
        without = [Plain(True), Plain(False)]
    for network in without:
        assert "no BatchNorm" in refused(Classifier(network, 3))
    assert "class 2 would get no image (10 images in batches of 5, targets=per_batch)" in refused(
        images=10
    )
    assert "class 1 would get no image" in refused(images=1, targets="balanced")
    noisy = Classifier(SmallNet(gratings(60)), 3).eval()
    noisy.stochastic = True
    assert "deterministic" in refused(noisy)


def test_images_of_another_shape_are_refused_in_one_line(net):
    text = message(lambda: synthetic_images(net, (1, 16, 16), RECIPE, NOISE))
    assert "shape (1, 16, 16) (RuntimeError: it normalises 3 channels)" in text
    plain = Classifier(net.network, 3)
    assert "does not run on images of shape (4, 16, 16)" in message(
        lambda: synthetic_images(plain, (4, 16, 16), RECIPE, NOISE)
    )


def test_the_step_of_pixels_is_the_one_that_ends_a_batch_at_the_smaller_loss(
    net, cache, tmp_path, monkeypatch
):
    recipe = replace(RECIPE, rate=None, space="pixels", coefficients="dss", tv_random=True)
    tried = []

    def synthesise(classifier, shape, recipe, number, noise):
        tried.append((recipe.rate, recipe.coefficients, recipe.images, number))
        return SimpleNamespace(losses=SimpleNamespace(total=losses[recipe.rate]))

    monkeypatch.setattr(images_module, "synthesise", synthesise)
    published = 0.1 * float(net.std.mean())
    for seed, best in enumerate((published, 0.1)):
        losses = {published: 2.0, 0.1: 2.0, best: 1.0}
        noise = BuildNoise(seed)
        for _ in range(2):
            assert images_module.with_step(net, SHAPE, recipe, noise) == replace(recipe, rate=best)
        assert tried[-2:] == [(published, "fixed", 5, 0), (0.1, "fixed", 5, 0)]
    assert len(tried) == 4


def test_a_step_that_is_given_is_not_tried(net, monkeypatch):
    monkeypatch.setattr(images_module, "synthesise", None)
    given = replace(RECIPE, rate=0.07, space="pixels")
    assert images_module.with_step(net, SHAPE, given, NOISE) == given
    for space in ("normalised", "sigmoid"):
        free = replace(RECIPE, space=space)
        assert images_module.with_step(net, SHAPE, free, NOISE) == replace(free, rate=0.1)


@pytest.mark.parametrize(("std", "step"), [((0.2, 0.3, 0.4), 0.03), ((1.0,), 0.02)])
def test_the_published_step_in_pixels(std, step):
    sizes = step_sizes("pixels", torch.tensor(std).reshape(1, -1, 1, 1))
    assert sizes == pytest.approx((step, 0.1))
