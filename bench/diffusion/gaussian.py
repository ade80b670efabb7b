"""`gaussian`: the exact denoiser of images with independent Gaussian pixels, a known answer that
needs no weights.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.source import DiffusionSource
from bench.spec import Params


class GaussianDenoiser(nn.Module):
    """The noise that is expected in z_i where each pixel of z is normal with this mean and standard
    deviation:

    sqrt(1 - abar) (z_i - sqrt(abar) mean) / (abar std^2 + 1 - abar).
    """

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    levels: Tensor

    def __init__(self, alpha_bar: Tensor, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.register_buffer("levels", alpha_bar.float(), persistent=False)

    def forward(self, z: Tensor, times: Tensor) -> Tensor:
        level = self.levels[times].reshape(-1, 1, 1, 1)
        # E[e | z_i] = Cov(e, z_i) / Var(z_i) (z_i - E z_i), with z_i of Ho et al. 2020, equation 4.
        return (
            (1 - level).sqrt() * (z - level.sqrt() * self.mean) / (level * self.std**2 + 1 - level)
        )


class GaussianParams(Params):
    channels: int = Field(1, ge=1, description="channels of the images")
    side: int = Field(28, ge=1, description="pixels a side")
    mean: float = Field(0.5, ge=0, le=1, description="mean of a pixel in [0, 1]")
    std: float = Field(0.3, gt=0, le=10, description="standard deviation of a pixel")


class Gaussian(DiffusionSource[GaussianParams]):
    """The exact denoiser of independent Gaussian pixels: for tests and for controls, it knows
    nothing of images.
    """

    Params: ClassVar[type[Params]] = GaussianParams

    def load(self) -> DiffusionModel:
        """The denoiser on the linear schedule of 1000 steps."""
        given = self.params
        alpha_bar = linear_alpha_bar()
        network = GaussianDenoiser(alpha_bar, 2 * given.mean - 1, 2 * given.std)
        model = DiffusionModel(network, alpha_bar, (given.channels, given.side, given.side))
        return model.eval().requires_grad_(False)
