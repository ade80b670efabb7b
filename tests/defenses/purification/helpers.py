"""Small diffusion models and purified classifiers."""

import numpy as np
import pytest
import torch
from bench_defenses.purification.purifier import (
    Purification,
    Purified,
    Round,
)
from torch import nn

from bench.contract.setups import setup_in_memory
from bench.data.dataset import ImageSet
from bench.diffusion.chain import Sampler, indices
from bench.diffusion.gaussian import GaussianDenoiser
from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.unet import build_unet
from bench.engine.build import build
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream

SIDE = 8


ABAR = linear_alpha_bar()


def tiny_unet(out: int = 1, seed: int = 0) -> DiffusionModel:
    pytest.importorskip("diffusers")
    config = {
        "sample_size": SIDE,
        "in_channels": 1,
        "out_channels": out,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    network = build_unet(config, seed).eval().requires_grad_(False)
    return DiffusionModel(network, ABAR, (1, SIDE, SIDE)).eval()


def gaussian(mean: float = 0.2, std: float = 0.5, side: int = SIDE) -> DiffusionModel:
    return DiffusionModel(GaussianDenoiser(ABAR, mean, std), ABAR, (1, side, side)).eval()


class Linear(nn.Module):
    def __init__(self, classes: int = 4, side: int = SIDE) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(classes, side * side, generator=generator))

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def purified(
    model: DiffusionModel, *rounds: Round, sampler: Sampler | None = None, **how
) -> Purified:
    classifier = Classifier(Linear(side=model.shape[1]), 4).eval().requires_grad_(False)
    return Purified(classifier, model, Purification(rounds, sampler or Sampler(), **how)).eval()


def diffpure(model: DiffusionModel, t: int = 100, steps: int = 5, **how) -> Purified:
    return purified(model, Round(t, steps, t - 1), **how)


def images(n: int = 6, side: int = SIDE) -> torch.Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))


def noise(n: int = 6, root: int = 0, draw: int = 0) -> Noise:
    return Noise.of(root, Stream.FIXED, range(n), draw)


def built(spec: str, generator: str = "") -> Purified:
    setup = setup_in_memory(
        Classifier(Linear(), 4).eval(),
        *[ImageSet(images(), torch.zeros(6).long(), np.arange(6))] * 2,
    )
    setup.dataset.plugin.default_generator = generator
    return build(plan(Request(defenses=(spec,), attacks=("pgd",)), setup)[-1], torch.device("cpu"))


def closed_form(t: int, steps: int, mean: float, std: float) -> tuple[float, float, float]:
    """(slope, offset, variance) of the purified z as a function of the clean z, for the exact
    Gaussian denoiser.
    """
    abar = ABAR.numpy()
    slope, offset, variance = np.sqrt(abar[t - 1]), 0.0, 1 - abar[t - 1]
    times = indices(t, steps)
    for i, p in zip(times, [*times[1:], -1], strict=True):
        a, before = abar[i], abar[p] if p >= 0 else 1.0
        # The posterior mean of z_p given z_i and z_0 is linear in both; z_0 is replaced by its
        # expectation given z_i.
        kept = a / before
        of_z0, of_zi = (
            np.sqrt(before) * (1 - kept) / (1 - a),
            np.sqrt(kept) * (1 - before) / (1 - a),
        )
        gain = np.sqrt(a) * std**2 / (a * std**2 + 1 - a)
        step, shift = of_z0 * gain + of_zi, of_z0 * (mean - gain * np.sqrt(a) * mean)
        spread = (1 - kept) * (1 - before) / (1 - a)
        slope, offset, variance = slope * step, offset * step + shift, variance * step**2 + spread
    return slope, offset, variance
