"""Random resizing and padding."""

import pytest
import torch
from torch.nn import functional as F

from bench.errors import BadInput
from tests.defenses.helpers import around_sum
from tests.defenses.testtime.helpers import build, network, noise, pixels


def test_random_resize_draws_once_a_batch_and_averages_softmaxes():
    images = torch.ones(6, 1, 12, 12)
    once = build("random-resize:draw=batch", network(3, (1, 16, 16)), (1, 12, 12))
    placed = once.transform(images, noise(6))
    assert torch.equal(placed, placed[:1].expand_as(placed)) and torch.equal(
        placed[4:5], once.transform(images[:1], noise(6).rows(slice(4, 5)))
    )
    assert any(not torch.equal(placed, once.transform(images, noise(6, draw))) for draw in (1, 2))
    images = pixels(6, 1, 12, 12)
    single, many = (
        build(f"random-resize:ensemble={k}", network(3, (1, 16, 16)), (1, 12, 12)) for k in (1, 4)
    )
    mean = torch.stack(
        [single(images, noise(6).at("draw").at(str(i))).softmax(1) for i in range(4)]
    ).mean(0)
    assert torch.allclose(many(images, noise(6)).exp(), mean, atol=1e-6)


def test_random_resize_draws_side_and_place_per_image():
    defended = around_sum("random-resize")
    images = torch.ones(300, 1, 28, 28)
    placed = defended.transform(images, noise(300))
    assert placed.shape == (300, 1, 32, 32)
    sides = (placed[:, 0].amax(1) > 0).sum(1)
    assert sorted(sides.unique().tolist()) == [28, 29, 30, 31, 32]
    assert torch.bincount(sides, minlength=33)[28:].min() > 35, "sides are uniform"
    first_column = (placed[:, 0].amax(1) > 0).float().argmax(1)
    assert (first_column <= 32 - sides).all() and len(first_column[sides == 28].unique()) == 5
    assert not torch.equal(placed, defended.transform(images, noise(300, 1)))
    assert torch.equal(placed[5:9], defended.transform(images[5:9], noise(300).rows(slice(5, 9))))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("sizes", ["grow=4", "grow=0,shrink=4", "grow=2,shrink=3"])
def test_random_resize_equals_interpolate_and_pad(mode, sizes):
    defended = around_sum(f"random-resize:mode={mode},pad_value=0.25,{sizes}")
    images = torch.rand(20, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    placed = defended.transform(images, noise(20))
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
        assert torch.allclose(placed[i], expected, atol=1e-5)


def test_random_resize_is_differentiable():
    images = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0)).requires_grad_(
        True
    )
    (slope,) = torch.autograd.grad(
        around_sum("random-resize")(images, noise(4))[:, 0].sum(), images
    )
    assert (slope.flatten(1).abs().amax(1) > 0).all()


def test_random_resize_needs_something_random():
    with pytest.raises(BadInput, match="nothing is random"):
        around_sum("random-resize:grow=0")
