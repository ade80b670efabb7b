"""The shipped defenses against hand-made oracles."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.defense import AccessDenied, DataAccess, Need
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream
from bench.plugins.create import DEFENSES, create
from bench.spec import parse
from bench.threat import ThreatModel

THREAT, SHAPE = ThreatModel("linf", 0.1), (1, 16, 16)


class Sum(nn.Module):
    """Two logits from an image of any size."""

    def forward(self, images):
        total = images.flatten(1).sum(1)
        return torch.stack([total, -total], 1)


def build(text: str):
    defense = create(DEFENSES, parse(text)).plugin
    access = DataAccess(frozenset(defense.needs), {}, text, THREAT, SHAPE)
    return defense.build(Classifier(Sum(), 2).eval(), access, Noise.of(0, Stream.BUILD, [0]))


def noise(n, draw=0):
    return Noise.of(0, Stream.EVAL, range(n), draw)


def test_undefended_is_the_classifier_itself():
    assert isinstance(build("undefended"), Classifier)


@pytest.mark.parametrize("bits", [1, 3, 7, 8])
def test_bit_depth_keeps_the_top_bits_of_every_level(bits):
    levels = torch.arange(256, dtype=torch.uint8)
    images = (levels.float() / 255).reshape(1, 1, 16, 16)
    shift = 8 - bits
    expected = ((levels.int() >> shift) << shift).float() / 255
    defended = build(f"bit-depth:bits={bits}")
    assert torch.allclose(defended.transform(images, noise(1)).flatten(), expected, atol=1e-7)
    assert not defended.stochastic


def test_random_resize_draws_side_and_place_per_image():
    defended = build("random-resize")
    images = torch.ones(300, 1, 28, 28)
    seen = defended.transform(images, noise(300))
    assert seen.shape == (300, 1, 32, 32)
    sides = (seen[:, 0].amax(1) > 0).sum(1)
    assert sorted(sides.unique().tolist()) == [28, 29, 30, 31, 32]
    assert torch.bincount(sides, minlength=33)[28:].min() > 35, "sides are uniform"
    first_column = (seen[:, 0].amax(1) > 0).float().argmax(1)
    assert (first_column <= 32 - sides).all() and len(first_column[sides == 28].unique()) == 5
    assert not torch.equal(seen, defended.transform(images, noise(300, 1)))
    assert torch.equal(seen[5:9], defended.transform(images[5:9], noise(300).rows(slice(5, 9))))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("sizes", ["grow=4", "grow=0,shrink=4", "grow=2,shrink=3"])
def test_random_resize_equals_interpolate_and_pad(mode, sizes):
    defended = build(f"random-resize:mode={mode},pad_value=0.25,{sizes}")
    images = torch.rand(20, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    seen = defended.transform(images, noise(20))
    grow, shrink = defended.params.grow, defended.params.shrink
    canvas = 12 + grow
    rows = noise(20)
    side = rows.integers("side", 12 - shrink, canvas + 1)
    left, top = (rows.integers(name, 0, canvas - side + 1) for name in ("left", "top"))
    for i in range(20):
        options = {} if mode == "nearest" else {"align_corners": False}
        small = F.interpolate(images[i : i + 1], size=(int(side[i]),) * 2, mode=mode, **options)
        expected = torch.full((3, canvas, canvas), 0.25)
        expected[:, top[i] : top[i] + side[i], left[i] : left[i] + side[i]] = small[0]
        assert torch.allclose(seen[i], expected, atol=1e-5)


def test_random_resize_is_differentiable():
    images = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0)).requires_grad_(
        True
    )
    (slope,) = torch.autograd.grad(build("random-resize")(images, noise(4))[:, 0].sum(), images)
    assert (slope.flatten(1).abs().amax(1) > 0).all()


def test_random_resize_needs_something_random():
    with pytest.raises(BadInput, match="nothing is random"):
        build("random-resize:grow=0")


def test_data_access_is_enforced():
    asked = []
    sources = {Need.TRAINING_DATA: lambda: asked.append(1) or (torch.zeros(1), torch.zeros(1))}
    closed = DataAccess(frozenset(), sources, "thief", THREAT, SHAPE)
    with pytest.raises(AccessDenied, match="without declaring"):
        closed.training_data()
    assert not asked
    opened = DataAccess(frozenset({Need.TRAINING_DATA}), sources, "honest", THREAT, SHAPE)
    opened.training_data()
    assert asked == [1]
    with pytest.raises(BadInput, match="does not offer"):
        DataAccess(frozenset({Need.TRAINING_DATA}), {}, "poor", THREAT, SHAPE).training_data()


def test_declared_properties_agree_with_what_is_built():
    # Those of the gallery need a network with activations (test_gallery.py), those that purify a
    # generator (test_purification.py), those that train images to train on (test_adversarial.py) or
    # BatchNorm (test_datafree.py, test_generators.py), and some images (test_testtime.py).
    elsewhere = {"gallery", "purification", "adversarial", "datafree", "generators"}
    for name in DEFENSES.names():
        plugin = DEFENSES.get(name)
        if name.startswith("toy-") or plugin.needs or elsewhere & set(plugin.__module__.split(".")):
            continue
        named = create(DEFENSES, parse(name))
        built = build(name)
        assert built.stochastic == named.plugin.stochastic
        assert tuple(built.gradients) == tuple(named.plugin.gradients)
        for gradient in built.gradients:
            for view in built.views():
                assert (
                    len(
                        built.forward_pass(gradient, view)(
                            torch.full((2, 1, 28, 28), 0.5), noise(2)
                        )
                    )
                    == 2
                )
        assert np.isfinite(built(torch.full((2, 1, 28, 28), 0.5), noise(2)).detach().numpy()).all()
