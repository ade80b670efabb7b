"""Training a diffusion model by recipe: repeatable, resumable, and blind to the test images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.recipe import DiffusionRecipe, rate_at
from bench.diffusion.unet import build_unet
from bench.noise import BuildNoise, Noise, Stream
from bench.storage.training_state import ResumableRun, Stateful


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
        start: the network's weights to begin with; fresh ones by default.
    """

    def __init__(
        self,
        images: Tensor,
        recipe: DiffusionRecipe,
        seed: int,
        device: str | torch.device = "cpu",
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, torch.device(device)
        self.images = (2 * images - 1).to(self.device)
        shape = tuple(images.shape[1:])
        network = (
            build_unet(recipe.config(shape), BuildNoise(seed).seed("network"))
            .to(self.device)
            .train()
        )
        if start is not None:
            network.load_state_dict(start)
        self.model = DiffusionModel(network, linear_alpha_bar(recipe.schedule), shape).to(
            self.device
        )
        self.optimiser = torch.optim.Adam(network.parameters(), lr=recipe.rate)
        self.average = {
            name: value.detach().clone() for name, value in network.state_dict().items()
        }
        self.kept = Weights()
        self.done = 0
        begun = sum(float(value.double().sum()) for value in (start or {}).values())
        data = float(self.images.cpu().double().sum())
        self.identity = json.dumps([asdict(recipe), seed, tuple(images.shape), data, begun])

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
        times = (noise.uniform("time", (batch,))[0] * self.recipe.trained_steps).long()
        images = augmented(self.images[which], self.recipe, noise)
        target = noise.normal("noise", (batch, *self.images.shape[1:]))[0]
        narrow = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow):
            loss = denoising_loss(self.model, images, times, target)
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
    predicted = output if isinstance(output, Tensor) else output.sample
    return F.mse_loss(predicted.float(), noise)


def augmented(images: Tensor, recipe: DiffusionRecipe, noise: Noise) -> Tensor:
    """The images of a step (n, C, H, W), mirrored and shifted as the recipe says."""
    count = len(images)
    if recipe.flips:
        mirrored = noise.uniform("flip", (count,))[0] < 0.5
        images = torch.where(mirrored.reshape(-1, 1, 1, 1), images.flip(-1), images)
    if recipe.shift:
        reach = 2 * recipe.shift + 1
        moves = (noise.uniform("shift", (2, count))[0] * reach).long()
        padded = F.pad(images, [recipe.shift] * 4, mode="reflect")
        height, width = images.shape[-2:]
        rows = moves[0, :, None] + torch.arange(height, device=images.device)
        columns = moves[1, :, None] + torch.arange(width, device=images.device)
        each = torch.arange(count, device=images.device)[:, None, None]
        # Advanced indices around a slice move the channels to the end.
        images = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return images


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
