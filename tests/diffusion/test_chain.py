"""The chain's steps against diffusers and closed forms."""

import numpy as np
import pytest
import torch

from bench.diffusion.chain import Sampler, indices, noised, reverse_step, sample
from bench.noise import Noise, Stream
from tests.defenses.purification.helpers import ABAR, gaussian, images, noise, tiny_unet


@pytest.fixture(autouse=True)
def diffusers_as_it_was():
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    before = module.randn_tensor
    yield
    module.randn_tensor = before


def test_levels_are_those_of_the_published_schedule():
    expected = {36: 0.98398, 100: 0.89702, 150: 0.78832, 200: 0.65904, 500: 0.07859}
    for t, level in expected.items():
        assert gaussian().level(t - 1) == pytest.approx(level, abs=6e-6)
    assert gaussian().level(-1) == 1.0


def test_indices_stride_evenly_and_end_at_the_first():
    assert indices(200, 10) == [199, 179, 159, 139, 119, 99, 79, 59, 39, 19]
    assert indices(5, 5) == [4, 3, 2, 1, 0]
    assert indices(7, 3) == [6, 3, 1]


def test_forward_stage_has_the_mean_and_variance_of_its_level():
    model, t = gaussian(side=32), 200
    z = torch.full((64, 1, 32, 32), 0.6)
    state = noised(model, z, t - 1, noise(64))
    level = model.level(t - 1)
    count = state.numel()
    assert state.mean().item() == pytest.approx(
        np.sqrt(level) * 0.6, abs=4 * np.sqrt((1 - level) / count)
    )
    assert state.var().item() == pytest.approx(1 - level, rel=4 * np.sqrt(2 / count))


def test_forward_stage_shrinks_a_perturbation_by_exactly_the_root_of_its_level():
    model = gaussian()
    z, a = images() * 2 - 1, 0.1 * (images(12)[6:] - 0.5)
    gap = noised(model, z + a, 199, noise()) - noised(model, z, 199, noise())
    assert torch.allclose(gap, np.sqrt(model.level(199)) * a, atol=1e-6)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("index", [0, 1, 39, 199, 999])
def test_ancestral_step_is_that_of_diffusers(index, clip):
    diffusers = pytest.importorskip("diffusers")
    model, z = tiny_unet(), 2 * images() - 1
    w = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    scheduler = diffusers.DDPMScheduler(1000, clip_sample=clip, variance_type="fixed_small")
    epsilon = model(z, index).epsilon
    ours = reverse_step(model, z, index, index - 1, Sampler(clip=clip), _handing_noise(w))
    # Their levels are float32, which costs the first indices digits of 1 - abar.
    for levels, tolerance in ((scheduler.alphas_cumprod, 1e-4), (ABAR, 1e-5)):
        scheduler.alphas_cumprod = levels
        theirs = scheduler.step(epsilon, index, z, generator=_handing(w)).prev_sample
        assert torch.allclose(ours, theirs, atol=tolerance)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("t", "steps"), [(200, 10), (1000, 50)])
def test_strided_ddim_step_is_that_of_diffusers(t, steps, eta):
    diffusers = pytest.importorskip("diffusers")
    model, z = tiny_unet(), 2 * images() - 1
    w = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    scheduler = diffusers.DDIMScheduler(1000, clip_sample=False, set_alpha_to_one=True)
    scheduler.num_inference_steps = 1000 * steps // t
    times = indices(t, steps)
    for index, previous in zip(times, [*times[1:], -1], strict=True):
        epsilon = model(z, index).epsilon
        theirs = scheduler.step(
            epsilon, index, z, eta=eta, variance_noise=w if eta else None
        ).prev_sample
        ours = reverse_step(model, z, index, previous, Sampler("ddim", eta), _handing_noise(w))
        assert torch.allclose(ours, theirs, atol=1e-5), index


@pytest.mark.parametrize("index", [1, 19, 199])
def test_ddim_with_eta_one_is_the_ancestral_step(index):
    model, z, before = tiny_unet(), 2 * images() - 1, index // 2
    one = reverse_step(model, z, index, before, Sampler("ddim", 1.0), noise())
    other = reverse_step(model, z, index, before, Sampler(), noise())
    assert torch.allclose(one, other, atol=1e-5)


def test_learned_variance_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    model, z = tiny_unet(out=2), 2 * images() - 1
    w = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    scheduler = diffusers.DDPMScheduler(1000, clip_sample=False, variance_type="learned_range")
    output = model(z, 150)
    theirs = scheduler.step(
        torch.cat([output.epsilon, output.log_variance], 1), 150, z, generator=_handing(w)
    ).prev_sample
    ours = reverse_step(model, z, 150, 149, Sampler(variance="learned"), _handing_noise(w))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_last_step_adds_no_noise(variance):
    model, z = tiny_unet(out=2), 2 * images() - 1
    ends = [
        reverse_step(model, z, 19, -1, Sampler(variance=variance), noise(draw=d)) for d in (0, 1)
    ]
    assert torch.equal(*ends)


class _Handed(Noise):
    """Noise that hands out one given tensor."""

    def normal(self, site, shape=()):
        return self.handed


def _handing_noise(w):
    noise = _Handed(Noise.of(0, Stream.FIXED, range(len(w)))._key)
    noise.handed = w
    return noise


def _handing(w):
    """A stand-in for a generator, by which diffusers' ancestral step can be given its noise."""
    import diffusers.schedulers.scheduling_ddpm as module

    class Generator:
        pass

    module.randn_tensor = lambda shape, generator=None, device=None, dtype=None: w
    return Generator()


def test_a_chain_from_pure_noise_samples_the_data():
    model = gaussian(0.2, 0.5, side=16)
    drawn = sample(model, Sampler(), 1000, noise(64))
    assert drawn.mean().item() == pytest.approx(0.2, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)
