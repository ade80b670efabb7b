"""The folder of a diffusion model: the layout of the package diffusers, with a card of ours in it.

config.json                             the network; may lie in unet/
diffusion_pytorch_model.safetensors     its weights, beside it (or .bin); the moving average, if any
scheduler_config.json                   the schedule; may lie in scheduler/
bench.json                              the card, optional: what it was trained on, checksums
raw.safetensors                         optional: the last weights themselves
steps/ema-000150.safetensors, raw-...   optional: weights after fewer steps, in half precision
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.diffusion.schedule import Schedule, alpha_bar, read_schedule
from bench.diffusion.unet import build_unet
from bench.errors import BadInput, Missing
from bench.models.file import fill_exactly, frozen, read_json, read_verified, validated
from bench.spec import Params

CONFIG = "config.json"
SCHEDULER = "scheduler_config.json"
CARD = "bench.json"
MAIN = "diffusion_pytorch_model.safetensors"
RAW = "raw.safetensors"

# What a network may ask for that a denoiser of images in [-1, 1] does not give.
_PLAIN = {
    "_class_name": "UNet2DModel",
    "center_input_sample": False,
    "class_embed_type": None,
    "num_class_embeds": None,
}
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(?<=\.)({'|'.join(_OLD_NAMES)})(?=\.(weight|bias)$)")


class Card(BaseModel):
    """What bench.json says of a model; recipe and measurements are for the reader.

    Attributes:
        trained_steps: the model was trained on the indices below this number only; 0 where on all.
        trained_on: names of image sets, such as `mnist5k/train`.
        steps: optimiser steps after which weights are kept, rising; the last number is the main
            file's.
        sha256: of each weights file, by its name in the folder.
    """

    model_config = ConfigDict(frozen=True)

    trained_steps: int = Field(default=0, ge=0)
    trained_on: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    sha256: dict[str, str] = {}


class Which(Params):
    """Which weights of a folder to take."""

    weights: Literal["ema", "raw"] = Field(
        default="ema", description="the moving average of the weights, or the last ones themselves"
    )
    step: int = Field(
        default=0, ge=0, description="weights after so many optimiser steps; 0: the last"
    )


@dataclass(frozen=True)
class Place:
    """Where a model's files lie.

    Attributes:
        name: for messages.
        find: the file of a name such as `unet/config.json`, or None.
        advice: what to do where a file is missing.
    """

    name: str
    find: Callable[[str], Path | None]
    advice: str

    def need(self, *names: str) -> tuple[str, Path]:
        """The first of these files that is there, with its name. Raises `Missing` where
        none is.
        """
        for name in names:
            path = self.find(name)
            if path is not None:
                return name, path
        raise Missing(f"{self.name} has no {' or '.join(names)}: {self.advice}")


def in_folder(folder: Path) -> Place:
    """A folder of this machine. Raises `Missing` where there is none."""
    if not folder.is_dir():
        raise Missing(f"no such folder: {folder} (for a diffusion model): check the path")

    def find(name: str) -> Path | None:
        path = folder / name
        return path if path.is_file() else None

    return Place(str(folder), find, "save the model there with diffusers, with its scheduler")


def read_model(
    place: Place, which: Which, *, subfolder: str = "", trained_on: tuple[str, ...] = ()
) -> DiffusionModel:
    """The model at a place, on the CPU, frozen, in evaluation mode.

    Args:
        place: where its files lie.
        which: the weights to take.
        subfolder: where the network lies; the place itself or `unet` by default.
        trained_on: names of image sets, where they are known without a card.

    Raises `BadInput` for a file that is missing, damaged, or not of such a model.
    """
    name, path = _configuration(place, subfolder)
    schedule_path = place.need(SCHEDULER, f"scheduler/{SCHEDULER}")[1]
    config, schedule, card = read_json(path), read_schedule(schedule_path), read_card(place)
    shape = _image_shape(config, path)
    _check_outputs(config, schedule, schedule_path)
    if card.trained_steps > schedule.num_train_timesteps:
        raise BadInput(
            f"{CARD} of {place.name} says trained_steps={card.trained_steps}, more than the "
            "schedule has: correct it"
        )
    network = build_unet(config)
    name, path = place.need(*_candidates(place, card, which, name.removesuffix(CONFIG)))
    fill_exactly(network, _renamed(read_verified(path, card.sha256.get(name, ""))), path)
    known = card.trained_on or trained_on
    return frozen(
        DiffusionModel(
            network, alpha_bar(schedule), shape, trained_steps=card.trained_steps, trained_on=known
        )
    )


def _configuration(place: Place, subfolder: str) -> tuple[str, Path]:
    homes = (f"{subfolder.rstrip('/')}/",) if subfolder else ("", "unet/")
    return place.need(*(home + CONFIG for home in homes))


def kept_weights(place: Place, subfolder: str = "") -> list[tuple[int, str]]:
    """The weights of several stages of training whose files are there, as `DiffusionSource.kept`.

    Raises `BadInput` where there is no model at all.
    """
    card, home = read_card(place), _configuration(place, subfolder)[0].removesuffix(CONFIG)
    chosen = [
        Which(step=step, weights=weights) for step in card.steps for weights in ("ema", "raw")
    ]
    return [
        (which.step, which.weights)
        for which in chosen
        if any(map(place.find, _candidates(place, card, which, home)))
    ]


def read_card(place: Place) -> Card:
    """The card at a place; an empty one where there is none."""
    path = place.find(CARD)
    return validated(Card, read_json(path), str(path)) if path else Card()


def weights_name(weights: str, step: int) -> str:
    """The file of earlier weights, `ema` or `raw`."""
    return f"steps/{weights}-{step:06d}.safetensors"


def _candidates(place: Place, card: Card, which: Which, home: str) -> tuple[str, ...]:
    """Names under which the chosen weights may lie."""
    if which.step and which.step not in card.steps:
        kept = ", ".join(map(str, card.steps)) or "only the last ones"
        raise BadInput(f"{place.name} has no weights after {which.step} steps: it keeps {kept}")
    if which.step and which.step != card.steps[-1]:
        return (weights_name(which.weights, which.step),)
    return (
        (RAW,)
        if which.weights == "raw"
        else (home + MAIN, (home + MAIN).replace(".safetensors", ".bin"))
    )


def _image_shape(config: Any, path: Path) -> tuple[int, int, int]:
    if not isinstance(config, Mapping):
        raise BadInput(
            f"{path} is not the configuration of a network: save the model again with diffusers"
        )
    for key, supported in _PLAIN.items():
        if config.get(key, supported) != supported:
            raise BadInput(
                f"{path} says {key}={config[key]!r}, which is not supported: give a model with "
                f"{key}={supported!r}"
            )
    size = config.get("sample_size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    shape: tuple[Any, Any, Any] = (config.get("in_channels", 3), height, width)
    if not all(type(number) is int and number > 0 for number in shape):
        raise BadInput(
            f"{path} does not say for which images the network was made: set in_channels and "
            "sample_size"
        )
    return shape


def _check_outputs(config: Mapping[str, Any], schedule: Schedule, path: Path) -> None:
    given, images = config.get("out_channels", 3), config.get("in_channels", 3)
    expected = 2 * images if schedule.variance_type == "learned_range" else images
    if given != expected:
        what = f"the network has {given} output channels, not {expected}"
        raise BadInput(
            f"variance_type in {path} is {schedule.variance_type}, but {what}: give the scheduler "
            "of this network"
        )


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state under today's names of attention layers: models saved before diffusers 0.15 carry
    others.
    """
    return {
        _OLD_NAME.sub(lambda name: _OLD_NAMES[name[0]], key): value for key, value in state.items()
    }
