"""What all known answers promise."""

import numpy as np
import pytest
import torch

from bench.commands.info import EXPECTED
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.plugins.create import DEFENSES, create
from bench.spec import parse
from tests.defenses.gallery.helpers import NAMES, build, net, noise, pixels, slope

QUICK = {"thermometer": "thermometer:epochs=1", "k-wta": "k-wta:epochs=1"}


def test_the_plain_ones():
    images = pixels(4)
    base = Classifier(net(), 10).eval()(images, noise(4))
    assert torch.equal(build("gradient-killer")(images, noise(4)), base)
    assert torch.allclose(build("temperature:t=50")(images, noise(4)), 50 * base)
    assert torch.equal(build("one-hot")(images, noise(4)), torch.eye(10)[base.argmax(1)])
    assert build("constant:label=7")(images, noise(4)).argmax(1).tolist() == [7] * 4
    rippled = build("shattered-gradient:amplitude=0.2,frequency=30").transform(images, noise(4))
    assert torch.allclose(rippled, images + 0.2 * torch.sin(30 * images))
    many = torch.zeros(500, 1, 12, 12)
    added = build("gaussian-noise:sigma=0.3").transform(many, noise(500))
    assert abs(float(added.mean())) < 0.01 and float(added.std()) == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_promises(name):
    declared = create(DEFENSES, parse(name)).plugin
    card = declared.card
    defended = build(QUICK.get(name, name))
    assert (defended.stochastic, tuple(defended.gradients)) == (
        declared.stochastic,
        tuple(declared.gradients),
    )
    images = pixels(8)
    with torch.no_grad():
        answer = defended(images, noise(8))
        assert torch.isfinite(answer).all()
        for gradient in defended.gradients:
            assert torch.equal(defended.forward_pass(gradient)(images, noise(8)), answer), (
                f"the {gradient} forward pass is another function"
            )
            assert all(
                len(defended.forward_pass(gradient, view)(images, noise(8))) == 8
                for view in defended.views()
            )
        assert torch.equal(defended(images, noise(8, 1)), answer) == (not defended.stochastic)
        order = np.array([6, 2, 5])
        assert torch.allclose(
            defended(images[order], noise(8).rows(order)), answer[order], atol=1e-4, rtol=1e-4
        )
    assert ("bpda" in defended.gradients) == bool(card.surrogate)
    assert card.attacks and card.truth and EXPECTED[card.expected]
    if card.surrogate:
        assert (slope(defended, images, "bpda").flatten(1).abs().amax(1) > 0).all()
    if name in (
        "jpeg",
        "tvm",
        "gradient-killer",
        "one-hot",
        "thermometer",
        "bit-depth",
        "constant",
    ):
        assert (slope(defended, images, "full") == 0).all()
    elif name != "temperature":
        assert (slope(defended, images, "full") != 0).any()


def test_no_defense_offers_an_unknown_gradient_or_view():
    for name in ("one-hot", "k-wta:epochs=0"):
        with pytest.raises(BadInput, match="no gradient 'smooth'"):
            build(name).forward_pass("smooth")
    with pytest.raises(BadInput, match="unknown view"):
        build("crop-ensemble").forward_pass("full", "features")
