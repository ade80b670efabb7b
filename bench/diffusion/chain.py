"""The reverse chain: from a noisy image to a clean one, step by step, with explicit noise.

Ancestral sampling after Ho et al. 2020 (arXiv 2006.11239, algorithm 2), DDIM after Song, Meng,
Ermon 2021 (arXiv 2010.02502, equation 12), learned variances after Nichol and Dhariwal 2021 (arXiv
2102.09672, equation 15). Every random number is a function of its key, so a step that is computed
again draws the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.diffusion.model import DiffusionModel, Prediction
from bench.noise import Noise

Link = Callable[[Tensor, Tensor], Tensor]
"""One step of a chain: (state z (n, C, H, W), the image that the whole chain began with, likewise)
to the next state.
"""

Guide = Callable[[Tensor, Tensor, int, Noise], Tensor]
"""A push on the mean, in units of the step's variance: (z, the image that the chain began with,
index, noise) to (n, C, H, W).
"""


@dataclass(frozen=True)
class Sampler:
    """How a reverse step is taken.

    Attributes:
        kind: `ddpm`, ancestral; or `ddim`.
        eta: of DDIM: 0 draws nothing, 1 has the ancestral `small` variance.
        variance: of the ancestral step: `small` (the posterior's, b (1 - abar_p) / (1 - abar_i)),
            `large` (b), or `learned`.
        clip: whether the clean image that a step foresees is clipped to [-1, 1].
    """

    kind: Literal["ddpm", "ddim"] = "ddpm"
    eta: float = 0.0
    variance: Literal["small", "large", "learned"] = "small"
    clip: bool = False

    @property
    def draws(self) -> bool:
        """Whether steps draw random numbers."""
        return self.kind == "ddpm" or self.eta > 0


def indices(t: int, steps: int) -> list[int]:
    """The time indices of a chain of `steps` steps from t, descending: (j + 1) t / steps - 1; t-1
    .. 0 for steps = t.
    """
    return [(j + 1) * t // steps - 1 for j in reversed(range(steps))]


def noised(model: DiffusionModel, z: Tensor, index: int, noise: Noise) -> Tensor:
    """The forward process in one shot (Ho et al. 2020, equation 4): sqrt(abar) z + sqrt(1 - abar) e
    at `index`.
    """
    level = model.level(index)
    # Ho et al. 2020, equation 4: z_i = sqrt(abar_i) z + sqrt(1 - abar_i) e.
    state: Tensor = math.sqrt(level) * z + math.sqrt(1 - level) * _normal(noise, "noise", z)
    return state


def reverse_step(
    model: DiffusionModel,
    z: Tensor,
    index: int,
    previous: int,
    sampler: Sampler,
    noise: Noise,
    push: Tensor | None = None,
) -> Tensor:
    """One step from `index` to `previous` (-1: the clean image, which takes no noise).

    Args:
        model: the denoiser.
        z: states (n, C, H, W).
        sampler: how.
        noise: rows of z.
        push: added to the mean times the step's variance.
    """
    level, before = model.level(index), model.level(previous)
    predicted: Prediction = model(z, index)
    # Song et al. 2021, equation 12, "predicted x_0": (z_i - sqrt(1 - abar_i) e) / sqrt(abar_i).
    clean: Tensor = (z - math.sqrt(1 - level) * predicted.epsilon) / math.sqrt(level)
    if sampler.clip:
        clean = clean.clamp(-1, 1)
    if previous < 0 and push is None:
        return clean
    if sampler.kind == "ddim":
        # Song et al. 2021, equation 12: sqrt(abar_p) z_0 + sqrt(1 - abar_p - sigma^2) e + sigma w,
        # with sigma = eta sqrt((1 - abar_p) / (1 - abar_i)) sqrt(1 - abar_i / abar_p).
        spread = sampler.eta * math.sqrt((1 - before) / (1 - level) * (1 - level / before))
        mean = (
            math.sqrt(before) * clean
            + math.sqrt(max(0.0, 1 - before - spread**2)) * predicted.epsilon
        )
        variance: float | Tensor = spread**2
    else:
        mean = _posterior_mean(z, clean, level, before)
        variance = _variance(sampler.variance, level, before, predicted.log_variance)
    if push is not None:
        mean = mean + variance * push
    if previous < 0 or not sampler.draws:
        return mean
    return mean + _root(variance) * _normal(noise, "step", z)


def _posterior_mean(z: Tensor, clean: Tensor, level: float, before: float) -> Tensor:
    """Ho et al. 2020, equation 7, for a step that may skip indices: alpha is abar_i / abar_p."""
    kept = level / before
    return (
        math.sqrt(before) * (1 - kept) / (1 - level) * clean
        + math.sqrt(kept) * (1 - before) / (1 - level) * z
    )


def _variance(kind: str, level: float, before: float, learned: Tensor | None) -> float | Tensor:
    large = 1 - level / before
    # Ho et al. 2020, equation 7.
    small = large * (1 - before) / (1 - level)
    if kind == "large":
        return large
    if kind == "small":
        return small
    if learned is None:
        raise ValueError("this model has not learned its variance")
    share = (learned + 1) / 2
    # Nichol and Dhariwal 2021, equation 15: exp(v log b + (1 - v) log b_small). At the last step
    # the small variance is 0, whose logarithm would not do.
    return (share * math.log(large) + (1 - share) * math.log(max(small, 1e-20))).exp()


def _root(variance: float | Tensor) -> float | Tensor:
    return variance.sqrt() if isinstance(variance, Tensor) else math.sqrt(variance)


def _normal(noise: Noise, site: str, like: Tensor) -> Tensor:
    return noise.normal(site, tuple(like.shape[1:])).to(like.dtype)


def links(
    model: DiffusionModel,
    visited: Sequence[int],
    sampler: Sampler,
    noise: Noise,
    guide: Guide | None = None,
) -> list[Link]:
    """The steps of a chain over `visited`, the time indices in descending order; only a guide makes
    them read the image that the chain began with.

    A step's numbers are keyed by its index: chains with fewer steps share those of the indices that
    they have.
    """
    return [
        _link(model, index, previous, sampler, noise.at(f"step{index}"), guide)
        for index, previous in zip(visited, [*visited[1:], -1], strict=True)
    ]


def _link(
    model: DiffusionModel,
    index: int,
    previous: int,
    sampler: Sampler,
    noise: Noise,
    guide: Guide | None,
) -> Link:
    def step(z: Tensor, origin: Tensor) -> Tensor:
        push = guide(z, origin, index, noise) if guide else None
        return reverse_step(model, z, index, previous, sampler, noise, push)

    return step


def run(steps: Sequence[Link], z: Tensor, origin: Tensor) -> Tensor:
    """Take all steps from z (n, C, H, W)."""
    for step in steps:
        z = step(z, origin)
    return z


def sample(model: DiffusionModel, sampler: Sampler, steps: int, noise: Noise) -> Tensor:
    """Images from nothing: the whole chain from pure noise; (n, C, H, W) in about [-1, 1], n the
    noise's rows.
    """
    z = noise.normal("start", model.shape)
    with torch.no_grad():
        return run(links(model, indices(model.steps, steps), sampler, noise.at("reverse")), z, z)
