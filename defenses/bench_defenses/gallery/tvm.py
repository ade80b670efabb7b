"""Total variation minimisation: drop pixels at random and smooth over the gaps."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, InputTransform
from bench.noise import BuildNoise, Noise
from bench.spec import Params

# Both steps of the primal-dual method; their product times 8, the squared norm of the difference
# operator, may not exceed 1.
_STEP = 8**-0.5


class TVMParams(Params):
    """Parameters of `tvm`."""

    drop: float = Field(0.5, gt=0, lt=1, description="probability with which a pixel is dropped")
    weight: float = Field(0.03, gt=0, le=10, description="weight of the total variation")
    steps: int = Field(100, ge=1, le=10_000, description="steps of the solver")


class Reconstructed(InputTransform):
    """Each image from a random half of its pixels (all channels of a pixel together), by
    TV-regularised least squares.
    """

    stochastic = True
    optimises = True

    def __init__(self, classifier: DefendedClassifier, params: TVMParams) -> None:
        super().__init__(classifier)
        self.params = params

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """Images (n, C, H, W) to their reconstructions; without gradient, as published."""
        kept = noise.uniform("dropped", (1, *images.shape[2:])) >= self.params.drop
        return reconstruct(
            images.detach(), kept.to(images.dtype), self.params.weight, self.params.steps
        )


def reconstruct(images: Tensor, kept: Tensor, weight: float, steps: int) -> Tensor:
    """Approximately the minimiser z of `objective`: the primal-dual method of Chambolle and Pock,
    JMIV 2011, algorithm 1.

    Args:
        images: (n, C, H, W).
        kept: 1 where a pixel is known, else 0; (n, 1, H, W).
        weight: of the total variation.
        steps: fixed, so that a result does not depend on what else is in the batch.
    """
    z = extrapolated = images * kept
    dual = torch.zeros(2, *images.shape, dtype=images.dtype, device=images.device)
    for _ in range(steps):
        # Chambolle and Pock 2011, algorithm 1: dual ascent and projection, primal descent,
        # extrapolation with theta = 1.
        dual = dual + _STEP * differences(extrapolated)
        dual = dual / (_length(dual) / weight).clamp_min(1)
        moved = z - _STEP * adjoint(dual)
        following = (moved + _STEP * kept * images) / (1 + _STEP * kept)
        extrapolated, z = 2 * following - z, following
    return z


def objective(z: Tensor, images: Tensor, kept: Tensor, weight: float) -> Tensor:
    """1/2 ||kept * (z - images)||^2 + weight * TV(z), isotropic, summed over channels; (n,)."""
    fit = (kept * (z - images)).square().flatten(1).sum(1) / 2
    return fit + weight * _length(differences(z)).flatten(1).sum(1)


def _length(field: Tensor) -> Tensor:
    """Euclidean length of a field (2, n, C, H, W) at each pixel; (n, C, H, W)."""
    return torch.hypot(field[0], field[1])


def differences(z: Tensor) -> Tensor:
    """Forward differences down and to the right, 0 at the border; (2, n, C, H, W)."""
    down = F.pad(z[:, :, 1:] - z[:, :, :-1], (0, 0, 0, 1))
    right = F.pad(z[..., 1:] - z[..., :-1], (0, 1))
    return torch.stack([down, right])


def adjoint(field: Tensor) -> Tensor:
    """The transpose of `differences`."""
    down, right = field[0][:, :, :-1], field[1][..., :-1]
    return (
        F.pad(down, (0, 0, 1, 0))
        - F.pad(down, (0, 0, 0, 1))
        + F.pad(right, (1, 0))
        - F.pad(right, (0, 1))
    )


class TVM(Defense[TVMParams]):
    """Total variation minimisation; random and non-differentiable."""

    Params = TVMParams
    stochastic = True
    gradients = ("full", "bpda")
    card = Card(
        paper="Guo et al., ICLR 2018, arXiv 1711.00117, section 3; broken by Athalye et al., "
        "ICML 2018, arXiv 1802.00420",
        note="squared data term and isotropic total variation, solved by our own primal-dual "
        "method where the paper has Bregman's",
        truth="0 % (BPDA with the identity and EOT, ImageNet, normalised L2 0.05; Athalye et al. "
        "2018)",
        expected="base",
        surrogate="the identity",
        attacks=(
            "bpda:randomness=(eot:k=5)",
            "bpda+eot",
            "em:gradient=bpda",
            "pgd",
            "transfer:base",
        ),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The reconstruction in front of the classifier."""
        return Reconstructed(classifier, self.params)
