"""Recipes of diffusion models: what a training run does, in numbers."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from bench.errors import BadInput, one_line

MOST_STEPS = 10**9
"""No run takes more steps; a larger number is a slip."""


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
        times: only the time indices below it are trained, as a purifier needs them; 0 for all.
        flips: mirror half of the images from left to right.
        shift: move each image by up to so many pixels along both axes, mirrored at its edges.
        precision: of the network's passes; the weights are float32 in any case. `bfloat16` halves
            the time on processors that multiply in it.
        kept: steps whose weights are kept beside the last ones.
        blocks, layers, heads, groups: channels of each resolution, residual blocks each, channels
            of an attention head, groups of a normalisation; attention is at the lowest
            resolution.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    batch: Annotated[int, Field(ge=1)] = 64
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-3
    warmup: Annotated[int, Field(ge=0)] = 50
    clip: Annotated[float, Field(gt=0)] = 1.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.995
    schedule: Annotated[int, Field(ge=1, le=100_000)] = 1000
    times: Annotated[int, Field(ge=0)] = 0
    flips: bool = False
    shift: Annotated[int, Field(ge=0)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    kept: tuple[int, ...] = ()
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = (16, 32, 32)
    layers: Annotated[int, Field(ge=1)] = 1
    heads: Annotated[int, Field(ge=1)] = 8
    groups: Annotated[int, Field(ge=1)] = 8

    @property
    def trained_steps(self) -> int:
        """The time indices below it are trained."""
        return self.times or self.schedule

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
    _check(recipe, shape, "the recipe")
    return recipe


def read_recipe(path: Path, shape: tuple[int, ...]) -> DiffusionRecipe:
    """A recipe from a TOML file whose keys are the fields of `DiffusionRecipe`.

    Args:
        path: the file; `steps` must be in it.
        shape: of the images, (C, H, W).

    Raises `BadInput` where it is none, or does not fit the images.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
        recipe = TypeAdapter(DiffusionRecipe).validate_python({**content, **lists})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise BadInput(f"{path}: {where}: {problem['msg'].lower()}: correct the recipe") from None
    except (OSError, ValueError, RecursionError) as error:
        told = f"cannot read the recipe {path} ({one_line(error)}): give a TOML file"
        raise BadInput(told) from error
    _check(recipe, shape, str(path))
    return recipe


def _check(recipe: DiffusionRecipe, shape: tuple[int, ...], name: str) -> None:
    if recipe.times > recipe.schedule:
        raise BadInput(
            f"{name}: times={recipe.times} is past the schedule of {recipe.schedule}: give at most "
            "that, or 0 for all"
        )
    if recipe.shift >= shape[-1]:
        raise BadInput(
            f"{name}: shift={recipe.shift} moves images of {shape[-1]} pixels out of sight: give "
            "less"
        )
    for block in recipe.blocks:
        if block % recipe.groups:
            raise BadInput(
                f"{name}: {block} channels are no multiple of groups={recipe.groups}: change one"
            )
    if recipe.blocks[-1] % recipe.heads:
        raise BadInput(
            f"{name}: {recipe.blocks[-1]} channels are no multiple of heads={recipe.heads}, the "
            "channels of an attention head: change one"
        )
    halvings = 2 ** (len(recipe.blocks) - 1)
    if shape[1] != shape[2] or shape[1] % halvings:
        size = f"{shape[1]} x {shape[2]}"
        raise BadInput(
            f"images of {size} pixels cannot be halved {len(recipe.blocks) - 1} times: the recipe "
            "needs squares that can"
        )


def rate_at(recipe: DiffusionRecipe, step: int) -> float:
    """Learning rate of a step, counted from 0."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    share = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * share))
