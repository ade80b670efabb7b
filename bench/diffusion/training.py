"""Training a diffusion model by recipe: repeatable, resumable, and blind to the test images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.unet import build_unet
from bench.errors import BadInput
from bench.noise import BuildNoise, Noise, Stream
from bench.storage.training_state import ResumableRun, Stateful


@dataclass(frozen=True)
class DiffusionRecipe:
    """Adam on the noise-prediction loss (Ho et al. 2020, equation 14) over all time steps, with a
    moving average of the weights.

    Attributes:
        steps: optimiser steps.
        batch: images a step.
        rate: peak learning rate; it rises linearly over `warmup` steps and sinks to 0 along a
            cosine.
        clip: largest norm of a gradient.
        average: decay of the moving average, reached by a ramp (1 + s) / (10 + s).
        schedule: length T of the schedule, betas linear from 1e-4 to 0.02.
        kept: steps whose weights are kept beside the last ones.
        blocks, layers, heads, groups: channels of each resolution, residual blocks each, channels
            of an attention head, groups of a normalisation; attention is at the lowest
            resolution.
    """

    steps: int
    batch: int = 64
    rate: float = 2e-3
    warmup: int = 50
    clip: float = 1.0
    average: float = 0.995
    schedule: int = 1000
    kept: tuple[int, ...] = ()
    blocks: tuple[int, ...] = (16, 32, 32)
    layers: int = 1
    heads: int = 8
    groups: int = 8

    def config(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """The network's configuration for images of shape (C, H, W)."""
        plain = len(self.blocks) - 1
        return {
            "sample_size": shape[-1],
            "in_channels": shape[0],
            "out_channels": shape[0],
            "block_out_channels": list(self.blocks),
            "layers_per_block": self.layers,
            "down_block_types": ["DownBlock2D"] * plain + ["AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D"] + ["UpBlock2D"] * plain,
            "attention_head_dim": self.heads,
            "norm_num_groups": self.groups,
        }


# One core trains mnist5k's 280,177 parameters at about 300 images a second.
RECIPES = {
    "mnist5k": DiffusionRecipe(steps=6000, kept=(75, 150, 300, 500, 800, 1300, 2100, 3500)),
}
"""Recipes by registered name of the data set."""

_GREY = DiffusionRecipe(steps=20_000)
_COLOUR = DiffusionRecipe(
    steps=100_000, batch=128, rate=5e-4, warmup=500, average=0.9995, blocks=(64, 128, 128), layers=2
)


def recipe_for(dataset: str, shape: tuple[int, ...]) -> DiffusionRecipe:
    """The recipe of a data set, else one for images of shape (C, H, W). Raises `BadInput` for
    images of odd size.
    """
    recipe = RECIPES.get(dataset) or (_GREY if shape[0] == 1 else _COLOUR)
    halvings = 2 ** (len(recipe.blocks) - 1)
    if shape[1] != shape[2] or shape[1] % halvings:
        size = f"{shape[1]} x {shape[2]}"
        raise BadInput(
            f"images of {size} pixels cannot be halved {len(recipe.blocks) - 1} times: the recipe "
            "needs squares that can"
        )
    return recipe


@dataclass(frozen=True)
class Progress:
    """How far a run is: steps done, of how many, and the mean loss since the last report."""

    done: int
    total: int
    loss: float


@dataclass
class Weights:
    """States of a network by step: as trained, and their moving average."""

    raw: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    average: dict[int, dict[str, Tensor]] = field(default_factory=dict)


REPORT_EVERY = 50
STORE_EVERY = 500


class DiffusionRun(ResumableRun[Progress]):
    """A training run, `advance`d in stretches of `REPORT_EVERY` steps.

    On one CPU thread, the same images, recipe and seed give the same bits, whether or not the run
    was interrupted.

    Args:
        images: training images float32 (n, C, H, W) in [0, 1].
        recipe: everything else.
        seed: decides initialisation, order, times and noise.
        device: where to train.
    """

    def __init__(
        self, images: Tensor, recipe: DiffusionRecipe, seed: int, device: str | torch.device = "cpu"
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, torch.device(device)
        self.images = (2 * images - 1).to(self.device)
        shape = tuple(images.shape[1:])
        network = (
            build_unet(recipe.config(shape), BuildNoise(seed).seed("network"))
            .to(self.device)
            .train()
        )
        self.model = DiffusionModel(network, linear_alpha_bar(recipe.schedule), shape).to(
            self.device
        )
        self.optimiser = torch.optim.Adam(network.parameters(), lr=recipe.rate)
        self.average = {
            name: value.detach().clone() for name, value in network.state_dict().items()
        }
        self.kept = Weights()
        self.done = 0
        self.identity = json.dumps(
            [asdict(recipe), seed, tuple(images.shape), float(self.images.cpu().double().sum())]
        )

    @property
    def finished(self) -> bool:
        return self.done >= self.recipe.steps

    @property
    def network(self) -> nn.Module:
        return self.model.network

    def advance(self) -> Progress:
        """Take the next steps, up to `REPORT_EVERY` of them."""
        losses = [self._step() for _ in range(min(REPORT_EVERY, self.recipe.steps - self.done))]
        return Progress(self.done, self.recipe.steps, float(torch.stack(losses).mean()))

    def _step(self) -> Tensor:
        noise = Noise.of(self.seed, Stream.BUILD, [0], self.done, self.device)
        batch = self.recipe.batch
        which = (noise.uniform("image", (batch,))[0] * len(self.images)).long()
        times = (noise.uniform("time", (batch,))[0] * self.recipe.schedule).long()
        loss = denoising_loss(
            self.model,
            self.images[which],
            times,
            noise.normal("noise", (batch, *self.images.shape[1:]))[0],
        )
        self._descend(loss)
        self._follow()
        if self.done in (*self.recipe.kept, self.recipe.steps):
            self.kept.raw[self.done] = _copied(self.network.state_dict())
            self.kept.average[self.done] = _copied(self.average)
        return loss.detach()

    def _descend(self, loss: Tensor) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.recipe, self.done)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimiser.step()
        self.done += 1

    def _follow(self) -> None:
        decay = min(self.recipe.average, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def parts(self) -> Mapping[str, Stateful]:
        return {"network": self.network, "optimiser": self.optimiser}

    def counters(self) -> dict[str, Any]:
        """Steps so far, the moving average, and the kept weights."""
        return {
            "done": self.done,
            "average": self.average,
            "kept": [self.kept.raw, self.kept.average],
        }

    def take_up(self, counters: dict[str, Any]) -> None:
        self.done, self.average = counters["done"], counters["average"]
        self.kept = Weights(*counters["kept"])


def denoising_loss(model: DiffusionModel, z: Tensor, times: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020, equation 14).

    Args:
        z: clean images (n, C, H, W) in [-1, 1].
        times: index of each image, int64 (n,).
        noise: standard normal, (n, C, H, W).
    """
    level = model.alpha_bar.float()[times].reshape(-1, 1, 1, 1)
    # Ho et al. 2020, equation 4: z_i = sqrt(abar_i) z + sqrt(1 - abar_i) e.
    noisy = level.sqrt() * z + (1 - level).sqrt() * noise
    output = model.network(noisy, times)
    return F.mse_loss(output if isinstance(output, Tensor) else output.sample, noise)


def rate_at(recipe: DiffusionRecipe, step: int) -> float:
    """Learning rate of a step, counted from 0."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    share = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * share))


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
