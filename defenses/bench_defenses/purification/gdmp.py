"""GDMP: purification that is drawn towards the image it began with."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bench.data.similarity import ssim
from bench.defense import Card
from bench.diffusion.chain import Guide, noised
from bench.diffusion.model import DiffusionModel
from bench.noise import Noise
from bench_defenses.purification.purifier import (
    ATTACKS,
    ChainParams,
    Purification,
    PurifyingDefense,
    Round,
    expanded,
)

RECIPES: dict[str, dict[str, Any]] = {
    "published": {"clamp": True, "votes": 10, "vote": "logit-mean"},
}
"""Beside the defaults, which are CIFAR-10's: the released code classifies ten purified copies, each
clamped, and answers by the sum of their logits.
"""


class GDMPParams(ChainParams):
    """Parameters of `gdmp`."""

    t: int = Field(
        36, ge=1, description="steps of the schedule that are reversed in each round, of 1000"
    )
    steps: int = Field(36, ge=1, description="steps of a round's chain; fewer than t skip evenly")
    start_index: int | None = Field(
        None, ge=0, description="time index that the image is noised to; t where not given"
    )
    rounds: int = Field(4, ge=1, le=100, description="noise and denoise so often")
    guidance: Literal["mse", "ssim"] = Field(
        "mse", description="similarity to the noised input that the chain is pushed towards"
    )
    scale: float = Field(
        600.0,
        gt=0,
        description="guide_scale of the paper's code over its batch size, 60000 / 100 on CIFAR-10; "
        "less for smaller images",
    )
    ptb: float = Field(
        8.0, gt=0, description="size of the perturbation that is expected, in units of 1/255"
    )
    variance: Literal["small", "large", "learned"] = Field(
        "large", description="of ancestral steps"
    )
    clip: bool = Field(True, description="clip the clean image that each step foresees to [-1, 1]")
    recipe: Literal["", "published"] = Field(
        "",
        exclude=True,
        description="published settings, for what is not given: ten clamped copies vote by their "
        "mean logits",
    )

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, values: Any) -> Any:
        return expanded(values, RECIPES)

    @model_validator(mode="after")
    def _guide_counts(self) -> GDMPParams:
        if self.sampler == "ddim" and not self.eta:
            raise ValueError(
                "the guide counts in units of the step's variance, which is 0 here: add eta=1, or "
                "drop sampler=ddim"
            )
        if self.steps == 1 and (self.sampler == "ddim" or self.variance == "small"):
            raise ValueError(
                "the guide counts in units of the step's variance, which is 0 in the last one: "
                "give steps=2 or more"
            )
        return self


class GDMP(PurifyingDefense[GDMPParams]):
    """Guided diffusion model for purification: each step is drawn towards the noised input."""

    Params = GDMPParams
    card = Card(
        paper="Wang et al. 2022, arXiv 2205.14969, equation 8",
        note="the guide is the defense's input in all rounds, diffused with fresh noise at each "
        "step; the similarity is a mean over "
        "the image's pixels, in the paper's code over the whole batch of 100",
        attacks=ATTACKS,
    )

    def rounds(self, model: DiffusionModel | None) -> list[Round]:
        """Equal rounds, each noised to index t, one later than DiffPure's."""
        params = self.params
        level = params.t if params.start_index is None else params.start_index
        return [Round(params.t, params.steps, level)] * params.rounds

    def purification(self, model: DiffusionModel | None) -> Purification:
        """With the guide."""
        return self.params.how(self.rounds(model), _guide(self.params, model))


def _guide(params: GDMPParams, model: DiffusionModel | None) -> Guide:
    """The push scale(i) x gradient of the similarity of z to the input diffused to i.

    scale(i) = sqrt(1 - abar_i) / (m sqrt(abar_i)) with m = 2 ptb / (255 x 3 x guide_scale).
    """
    slope = _mse_slope if params.guidance == "mse" else _ssim_slope
    strength = 255 * 3 * params.scale / (2 * params.ptb)

    def push(z: Tensor, origin: Tensor, index: int, noise: Noise) -> Tensor:
        assert model is not None
        level = model.level(index)
        guide = noised(model, origin, index, noise)
        # Wang et al. 2022, eq. 8: scale(i) times the gradient of the similarity to the input.
        return strength * math.sqrt((1 - level) / level) * slope(z, guide)

    return push


def _mse_slope(z: Tensor, guide: Tensor) -> Tensor:
    """Gradient of minus the mean squared difference of each image."""
    return -2 * (z - guide) / z[0].numel()


def _ssim_slope(z: Tensor, guide: Tensor) -> Tensor:
    """Gradient of each image's mean structural similarity, itself differentiable."""
    wanted = torch.is_grad_enabled() and (z.requires_grad or guide.requires_grad)
    with torch.enable_grad():
        leaf = z if wanted and z.requires_grad else z.detach().requires_grad_()
        total = ssim((leaf + 1) / 2, (guide + 1) / 2).sum()
        (slope,) = torch.autograd.grad(total, leaf, create_graph=wanted)
    return slope
