"""A diffusion model: a network that predicts the noise in an image, and the schedule that it was
trained on.

Notation of Ho, Jain, Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020, arXiv
2006.11239. Images are z = 2x - 1 in [-1, 1]. Time is an index i = 0 .. T-1: z_i = sqrt(abar_i) z +
sqrt(1 - abar_i) e with e standard normal (equation 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

FIRST_BETA, LAST_BETA = 1e-4, 0.02
"""Ends of the linear schedule of Ho et al. 2020, section 4."""


@dataclass(frozen=True)
class Prediction:
    """What the network predicts of a noisy image.

    Attributes:
        epsilon: the noise in it, (n, C, H, W).
        log_variance: where the reverse step's variance lies between its bounds, (n, C, H, W) in
            about [-1, 1] (Nichol and Dhariwal 2021, arXiv 2102.09672, equation 15, with v = (o + 1)
            / 2); None where it was not learned.
    """

    epsilon: Tensor
    log_variance: Tensor | None = None


class DiffusionModel(nn.Module):
    """A frozen denoiser with its schedule.

    Args:
        network: takes (z (n, C, H, W), index (n,)) and returns the noise, C channels, or 2C where
            it learned the variance.
        alpha_bar: cumulative products of 1 - beta, float64 (T,), descending.
        shape: (C, H, W) of its images.
        trained_steps: it was trained on the indices below this number only; T by default.
        trained_on: names of the image sets that it was trained on, such as `mnist5k/train`.
    """

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    alpha_bar: Tensor

    def __init__(
        self,
        network: nn.Module,
        alpha_bar: Tensor,
        shape: Sequence[int],
        *,
        trained_steps: int = 0,
        trained_on: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.shape = cast(tuple[int, int, int], tuple(shape))
        self.trained_steps = trained_steps or len(alpha_bar)
        self.trained_on = tuple(trained_on)
        self.register_buffer("alpha_bar", alpha_bar.double(), persistent=False)
        # Python numbers, so that no step reads a tensor back from a GPU.
        self._levels: tuple[float, ...] = tuple(alpha_bar.double().tolist())

    @property
    def steps(self) -> int:
        """Length T of the schedule."""
        return len(self._levels)

    def level(self, index: int) -> float:
        """abar_i: the share of the image's variance that is left; 1 for index -1, the clean
        image.
        """
        return 1.0 if index < 0 else self._levels[index]

    def forward(self, z: Tensor, index: int) -> Prediction:
        """Predict the noise in z (n, C, H, W) at time `index`."""
        times = torch.full((len(z),), index, dtype=torch.int64, device=z.device)
        output = cast(Any, self.network)(z, times)
        sample: Tensor = output if isinstance(output, Tensor) else output.sample
        channels = self.shape[0]
        if sample.shape[1] == channels:
            return Prediction(sample)
        return Prediction(sample[:, :channels], sample[:, channels:])


@contextmanager
def denoised_rows(module: nn.Module) -> Iterator[list[int]]:
    """The rows of each call of a diffusion model inside `module`, filled during the block; a pass
    that takes no part in a prediction calls `DiffusionModel.forward` itself and is not counted.
    """
    rows: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.append(len(inputs[0]))

    handles = [model.register_forward_pre_hook(count) for model in denoisers(module)]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def denoisers(module: nn.Module) -> list[DiffusionModel]:
    """The diffusion models inside `module`, each once."""
    return [part for part in module.modules() if isinstance(part, DiffusionModel)]


def linear_alpha_bar(
    steps: int = 1000, first: float = FIRST_BETA, last: float = LAST_BETA
) -> Tensor:
    """Cumulative products of 1 - beta for betas that rise linearly (Ho et al. 2020, section 4):
    float64 (steps,).
    """
    # abar_i = prod over j <= i of (1 - beta_j), as equation 4 has it.
    return (1 - torch.linspace(first, last, steps, dtype=torch.float64)).cumprod(0)
