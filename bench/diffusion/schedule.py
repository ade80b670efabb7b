"""The noise schedule of a published model, from the scheduler_config.json of the package
diffusers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from bench.errors import BadInput
from bench.models.file import read_json, validated


class Schedule(BaseModel):
    """What a scheduler_config.json says of training; what it says of sampling is ignored.

    Attributes:
        num_train_timesteps: length T.
        beta_schedule: how the betas rise: linearly (Ho et al. 2020), linearly in their roots, by
            the squared cosine (Nichol and Dhariwal 2021, equation 17), or as listed in
            `trained_betas`, which goes before any other.
        beta_start, beta_end: first and last beta of the linear ones.
        variance_type: `learned_range` where the network also predicts the variance of the reverse
            step.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    num_train_timesteps: int = Field(ge=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "trained_betas"]
    beta_start: float = Field(1e-4, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    trained_betas: tuple[float, ...] | None = None
    prediction_type: Literal["epsilon"] = "epsilon"
    variance_type: Literal[
        "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"
    ] = "fixed_small"
    rescale_betas_zero_snr: Literal[False] = False


def read_schedule(path: Path) -> Schedule:
    """The schedule in a scheduler_config.json. Raises `BadInput` for another prediction than the
    noise, or an unknown schedule.
    """
    schedule = validated(Schedule, read_json(path), str(path))
    listed = schedule.trained_betas
    if listed is None and schedule.beta_schedule == "trained_betas":
        raise BadInput(f"{path} says trained_betas, but lists none: add them")
    if listed is not None and (
        len(listed) != schedule.num_train_timesteps or not all(0 < beta < 1 for beta in listed)
    ):
        raise BadInput(
            f"trained_betas in {path} are not {schedule.num_train_timesteps} numbers between 0 and "
            "1: correct them"
        )
    return schedule


def alpha_bar(schedule: Schedule) -> Tensor:
    """Cumulative products of 1 - beta: float64 (T,). diffusers takes them in float32."""
    return (1 - _betas(schedule)).cumprod(0)


def _betas(schedule: Schedule) -> Tensor:
    steps, first, last = schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end
    if schedule.trained_betas is not None:
        return torch.tensor(schedule.trained_betas, dtype=torch.float64)
    if schedule.beta_schedule == "squaredcos_cap_v2":
        return _cosine_betas(steps)
    # Linear: Ho et al. 2020, section 4; scaled_linear: sqrt(beta) is linear.
    power = 2 if schedule.beta_schedule == "scaled_linear" else 1
    return (
        torch.linspace(first ** (1 / power), last ** (1 / power), steps, dtype=torch.float64)
        ** power
    )


def _cosine_betas(steps: int) -> Tensor:
    """Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17, with s = 0.008 and betas of at most
    0.999.
    """
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    # abar(t) = f(t) / f(0), f(t) = cos^2((t / T + s) / (1 + s) pi / 2); f(0) cancels in the betas.
    level = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - level[1:] / level[:-1]).clamp(max=0.999)
