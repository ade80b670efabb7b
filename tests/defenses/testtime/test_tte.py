"""Test-time transformation ensembling."""

import numpy as np
import pytest
import torch
from bench_defenses.testtime.tte import TTEParams, blurred, cropped, terms_of

from bench.engine.plan import plan
from bench.engine.request import Request
from bench.errors import BadInput
from bench.noise import BuildNoise
from bench.plugins.create import DEFENSES, create
from bench.randomness import Query
from bench.spec import parse
from bench.testing import DefenseContract
from bench.victim import Victim, frozen
from tests.defenses.testtime.helpers import build, network, noise, pixels


class TestTTEContract(DefenseContract):
    defense = "tte:crops=2"


def shifted(images, top, left):
    """Each image moved so that what was at (top, left) of its padded version comes to the corner,
    by loops.
    """
    n, channels, height, width = images.shape
    out = torch.zeros_like(images)
    for y in range(height):
        for x in range(width):
            if 0 <= y + top < height and 0 <= x + left < width:
                out[:, :, y, x] = images[:, :, y + top, x + left]
    return out


@pytest.mark.parametrize(
    ("shape", "pad"), [((1, 28, 28), 4), ((3, 16, 16), 2), ((1, 12, 20), None)]
)
def test_tte_is_the_average_written_by_hand(shape, pad):
    classifier, images = network(5, shape), pixels(6, *shape)
    defended = build("tte:crops=3", classifier, shape)
    pads = (pad or 2, pad or 2)
    views = [images, images.flip(3)]
    for source in (images, images.flip(3)):
        for i in range(3):
            at = BuildNoise(0).at("crop").at(str(i))
            top, left = (
                int(at.integers(name, 0, 2 * p))
                for name, p in zip(("top", "left"), pads, strict=True)
            )
            views.append(shifted(source, top - pads[0], left - pads[1]))
    expected = torch.stack([classifier(view, noise(6)) for view in views]).mean(0)
    assert torch.allclose(defended(images, noise(6)), expected, atol=1e-5)


def test_as_released_has_four_views_with_the_weights_of_ten():
    origins = [(1, 2), (3, 4), (5, 6), (7, 0)]
    terms = terms_of(TTEParams(mode="as_released"), origins, (4, 4))
    assert [(term.name, round(term.weight, 6)) for term in terms] == [
        ("image", 0.1),
        ("flip", 0.1),
        ("crop3", 0.4),
        ("flip-crop3", 0.4),
    ]
    assert [round(term.weight, 6) for term in terms_of(TTEParams(), origins, (4, 4))] == [0.1] * 10
    image = pixels(1, 1, 32, 32)
    assert torch.equal(terms[2].transform(image), shifted(image, 3, -4))


def test_tte_views_average_to_the_answer_and_blind_sees_the_classifier():
    classifier, images = network(4, (1, 8, 8)), pixels(3, 1, 8, 8)
    defended = build("tte:crops=2,blur=1", classifier, (1, 8, 8))
    single = [view for view in defended.views() if view.startswith("single:")]
    assert len(single) == 7
    mean = torch.stack(
        [defended.forward_pass("full", view)(images, noise(3)) for view in single]
    ).mean(0)
    assert torch.allclose(defended(images, noise(3)), mean, atol=1e-6)
    for forward in (defended.forward_pass("blind"), defended.forward_pass("full", "base")):
        assert torch.equal(forward(images, noise(3)), classifier(images, noise(3)))
    with pytest.raises(BadInput, match="unknown view"):
        defended.forward_pass("full", "single:crop9")


def test_crop_origin_pad_is_the_identity_and_blur_keeps_constants():
    image = pixels(2, 3, 10, 10)
    assert torch.equal(cropped(image, (3, 2), (3, 2)), image)
    assert torch.allclose(
        blurred(torch.full((1, 3, 9, 9), 0.3), 1.0), torch.full((1, 3, 9, 9), 0.3), atol=1e-6
    )
    spot = torch.zeros(1, 1, 9, 9)
    spot[0, 0, 4, 4] = 1
    line = np.exp(-(np.arange(-2, 3) ** 2) / 8)
    expected = np.outer(line, line) / line.sum() ** 2
    assert np.allclose(blurred(spot, 2.0)[0, 0, 2:7, 2:7].numpy(), expected, atol=1e-6)


def test_tte_refuses_to_average_nothing():
    with pytest.raises(BadInput, match="only view"):
        create(DEFENSES, parse("tte:flip=false,crops=0"))


@pytest.mark.slow
def test_tte_on_resnet20(real_data):
    request = Request(
        ("tte",),
        ("null",),
        dataset=f"npz:{real_data}/data/cifar10_exact.npz",
        classifier=f"file:{real_data}/models/cifar_resnet20.safetensors",
        eps=8 / 255,
        n=1017,
    )
    setup = plan(request)[-1].setup
    classifier, images = setup.classifier, setup.images
    defended = build("tte", classifier, (3, 32, 32))
    with frozen(defended):
        logits = Victim(defended, images.ids).logits(images.pixels(), torch.arange(1017), Query())[
            :, 0
        ]
    assert 949 <= int((logits.argmax(1) == images.labels).sum()) <= 957
