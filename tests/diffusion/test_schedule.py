"""Noise schedules."""

import pytest
import torch

from bench.diffusion.schedule import Schedule, alpha_bar
from tests.diffusion.helpers import diffusers


@pytest.mark.parametrize(
    "changes",
    [
        {
            "beta_schedule": "linear",
            "beta_start": 1e-4,
            "beta_end": 0.02,
            "num_train_timesteps": 1000,
        },
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "num_train_timesteps": 1000,
        },
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300},
        {"beta_schedule": "linear", "trained_betas": [0.1, 0.3, 0.2], "num_train_timesteps": 3},
    ],
)
def test_schedules_are_those_of_diffusers(changes):
    theirs = diffusers.DDPMScheduler(**changes).alphas_cumprod
    ours = alpha_bar(Schedule(**changes))
    assert ours.dtype == torch.float64
    # diffusers multiplies in float32, and near 0 it loses the last levels of the cosine.
    assert torch.allclose(ours, theirs.double(), rtol=2e-4, atol=1e-7)
