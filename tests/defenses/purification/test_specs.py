"""Specs of the purifying defenses: what they declare, what they refuse."""

import pytest
import torch
from bench_defenses.purification.purifier import (
    Purification,
    Purified,
    Round,
)

from bench.diffusion.chain import Sampler
from bench.diffusion.gaussian import GaussianDenoiser
from bench.diffusion.model import DiffusionModel
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.plugins.create import DEFENSES, create
from bench.spec import parse
from tests.defenses.purification.helpers import (
    ABAR,
    Linear,
    built,
    gaussian,
    images,
    noise,
)

MODEL = "model=(gaussian:side=8)"


@pytest.mark.parametrize(
    "spec",
    [
        "diffpure:t=20,steps=2",
        "revpure:t=20,steps=2",
        "gdmp:t=9,steps=3,rounds=2",
        "gradual:t=9+12,steps=2",
    ],
)
def test_declared_properties_agree_with_what_is_built(spec):
    defense = create(DEFENSES, parse(spec)).plugin
    defended = built(f"{spec}{',' if ':' in spec else ':'}{MODEL}")
    assert defended.stochastic == defense.stochastic and tuple(defended.gradients) == tuple(
        defense.gradients
    )
    for gradient in defended.gradients:
        for view in set(defended.views()) - ({"states", "times"} if gradient == "blind" else set()):
            logits = defended.forward_pass(gradient, view)(images(), noise())
            assert len(logits) == 6 and torch.isfinite(logits).all()
    states, times = (
        defended.forward_pass("full", view)(images(), noise()) for view in ("states", "times")
    )
    assert states.shape[:2] == times.shape


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("diffpure:t=10,steps=11", "has only t=10 indices"),
        ("diffpure:" + MODEL + ",t=1001", "schedule of 1000 steps: give a smaller t$"),
        (
            "diffpure:" + MODEL + ",t=10,start_index=1000",
            "index 1000 lies beyond .* give a smaller start_index$",
        ),
        (
            "gdmp:" + MODEL + ",sampler=ddim,variance=small",
            "the step's variance, which is 0 here: add eta=1",
        ),
        ("gdmp:" + MODEL + ",steps=1,variance=small", "0 in the last one: give steps=2 or more"),
        ("diffpure:" + MODEL + ",variance=learned", "has not learned its variance"),
        ("diffpure:" + MODEL + ",eta=0.5", "eta is DDIM's"),
        ("diffpure:" + MODEL + ",votes=3", "vote and votes go together"),
        ("diffpure:model=nowhere", "unknown diffusion model 'nowhere'"),
        ("diffpure", "has no diffusion model of its own"),
        ("gradual:t=30+50,steps=40", "at most 30 steps"),
        ("gradual:t=30+50,steps=1+2+3", "2 rounds, but 3 numbers"),
        ("gradual:t=30+0", "greater than or equal to 1"),
    ],
)
def test_bad_parameters_get_one_clear_line(spec, message):
    with pytest.raises(BadInput, match=message) as caught:
        built(spec)
    assert "\n" not in str(caught.value)


def test_a_model_for_other_images_is_refused_and_resize_helps():
    x = images(4, 16)
    small = gaussian(side=8)
    classifier = Classifier(Linear(side=16), 4).eval()
    how = Purification((Round(50, 5, 49),), Sampler())
    with pytest.raises(BadInput, match="8 x 8 pixels, not 16 x 16"):
        Purified(classifier, small, how)(x, noise(4))
    resizing = Purified(
        classifier, small, Purification((Round(50, 5, 49),), Sampler(), resize=True)
    )
    assert resizing.forward_pass("full", "purified")(x, noise(4)).shape == x.shape
    with pytest.raises(BadInput, match="1 channels, the images have 3"):
        resizing(x.repeat(1, 3, 1, 1), noise(4))


def test_t_beyond_the_trained_range_is_refused(monkeypatch):
    from bench.diffusion.gaussian import Gaussian

    def short(self):
        return DiffusionModel(GaussianDenoiser(ABAR, 0, 1), ABAR, (1, 8, 8), trained_steps=400)

    monkeypatch.setattr(Gaussian, "load", short)
    with pytest.raises(BadInput, match="trained below 400 only"):
        built("revpure:model=(gaussian:side=8,mean=0.31),t=401")


@pytest.mark.parametrize("name", ["diffpure", "revpure", "gradual", "gdmp"])
def test_the_contract_holds(name):
    from bench.contract.check import examine
    from bench.contract.defense import DEFENSE_CHECKS
    from bench.contract.defense_case import DefenseCase

    small = {"gradual": "t=20+40,steps=4", "gdmp": "t=8,steps=4,rounds=2"}.get(
        name, "t=100,steps=4"
    )
    failed = [
        v for v in examine(DEFENSE_CHECKS, DefenseCase(f"{name}:{small}")) if v.outcome != "ok"
    ]
    assert not failed, failed


@pytest.mark.parametrize(
    ("spec", "plain"),
    [
        ("gdmp:recipe=published", "gdmp:clamp=true,vote=logit-mean,votes=10"),
        ("gdmp:recipe=published,votes=3", "gdmp:clamp=true,vote=logit-mean,votes=3"),
        ("diffpure:recipe=cifar10", "diffpure:steps=100,t=100,variance=large"),
        ("diffpure:recipe=cifar10,t=75,steps=75", "diffpure:steps=75,t=75,variance=large"),
        ("diffpure:recipe=imagenet", "diffpure:resize=true,steps=150,t=150,variance=large"),
        (
            "diffpure:recipe=imagenet-ddpm",
            "diffpure:clip=true,resize=true,steps=150,t=150,variance=learned",
        ),
    ],
)
def test_a_recipe_is_the_settings_that_it_stands_for(spec, plain):
    short, long = create(DEFENSES, parse(spec)), create(DEFENSES, parse(plain))
    assert short.spec == plain and short.identity == long.identity
    assert "recipe" not in short.identity["params"]


def test_an_unknown_recipe_is_refused():
    with pytest.raises(BadInput, match="'recipe' got 'paper'"):
        create(DEFENSES, parse("gdmp:recipe=paper"))
