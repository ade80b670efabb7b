"""GDMP: the guide and its size."""

import numpy as np
import pytest
import torch
from bench_defenses.purification.purifier import (
    Round,
)

from bench.diffusion.chain import Sampler, noised
from bench.engine.memory import limited
from tests.defenses.purification.helpers import (
    ABAR,
    built,
    diffpure,
    gaussian,
    images,
    noise,
    purified,
)


@pytest.mark.parametrize("guidance", ["mse", "ssim"])
def test_guidance_draws_the_chain_towards_its_input(guidance):
    base = "model=(gaussian:side=8,mean=0.9,std=0.1),t=36,steps=36,rounds=1"
    gap = {}
    for scale in ("1", "1000" if guidance == "mse" else "100"):
        defended = built(f"gdmp:{base},guidance={guidance},scale={scale}")
        gap[scale] = (
            (defended.forward_pass("full", "purified")(images(), noise()) - images())
            .square()
            .mean()
            .item()
        )
    assert gap[scale] < 0.9 * gap["1"]


@pytest.mark.parametrize("guidance", ["mse", "ssim"])
def test_gradients_through_guidance_meet_finite_differences(guidance):
    defended = built(
        f"gdmp:model=(gaussian:side=8),t=36,steps=4,rounds=1,clip=false,guidance={guidance},scale="
        "100"
    )
    x, u = images(), torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(4))

    def value(at):
        return defended.forward_pass("full", "purified")(at, noise()).double().square().sum()

    leaf = x.clone().requires_grad_()
    for limit in ("1G", "1K"):
        with limited(limit):
            (slope,) = torch.autograd.grad(value(leaf), leaf)
        numeric = (value(x + 1e-2 * u) - value(x - 1e-2 * u)) / 2e-2
        assert (slope * u).sum().item() == pytest.approx(numeric.item(), rel=5e-3)


def test_the_guide_is_the_input_in_all_rounds():
    # As in the code of Wang et al.: its conditioning reads the given image, while the rounds pass
    # on what they purify.
    origins = []

    def guide(z, origin, index, noise):
        origins.append(origin)
        return torch.zeros_like(z)

    purified(gaussian(), *[Round(60, 2, 60)] * 3, guide=guide).purify(images(), noise())
    assert len(origins) == 6 and all(torch.equal(origin, 2 * images() - 1) for origin in origins)


def test_a_guided_step_has_the_published_size():
    # One step to the end: mean + variance x scale(i) x gradient, with scale(i) and m as in the code
    # of Wang et al.
    defended = built(
        "gdmp:model=(gaussian:side=8),t=36,start_index=35,steps=1,rounds=1,clip=false,scale=600"
    )
    plain = diffpure(defended.model, 36, 1)
    level, m = ABAR[35].item(), 2 * 8 / (255 * 3 * 600)
    z = noised(defended.model, 2 * images() - 1, 35, noise().at("vote0").at("forward").at("round0"))
    fresh = noise().at("vote0").at("guidance").at("round0").at("step35").normal("noise", (1, 8, 8))
    guide = np.sqrt(level) * (2 * images() - 1) + np.sqrt(1 - level) * fresh
    push = (1 - level) * np.sqrt((1 - level) / level) / m * -2 * (z - guide) / 64
    expected = plain.forward_pass("full", "purified")(images(), noise()) + push / 2
    assert torch.allclose(
        defended.forward_pass("full", "purified")(images(), noise()), expected, atol=1e-5
    )
    assert push.abs().max() > 0.05


def test_the_defaults_of_gdmp_are_the_published_ones():
    how = built("gdmp:model=(gaussian:side=8)").how
    assert how.rounds == (Round(36, 36, 36),) * 4 and how.sampler == Sampler(
        variance="large", clip=True
    )
