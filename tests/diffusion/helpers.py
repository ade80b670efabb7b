"""A small network in the layout of diffusers."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bench.diffusion.folder import Folder, FolderParams
from bench.diffusion.model import DiffusionModel
from bench.noise import isolated

with isolated(0):
    diffusers = pytest.importorskip("diffusers")


CONFIG = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.1.0",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


SCHEDULE = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 100,
    "beta_schedule": "linear",
    "beta_start": 1e-3,
    "beta_end": 0.05,
    "clip_sample": True,
}


Z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def written(
    folder: Path,
    network,
    *,
    config=(),
    schedule=(),
    card=None,
    home="",
    scheduler="",
    save="safetensors",
) -> Path:
    """A folder in diffusers' layout."""
    for place in (folder / home, folder / scheduler):
        place.mkdir(parents=True, exist_ok=True)
    (folder / home / "config.json").write_text(json.dumps({**CONFIG, **dict(config)}))
    (folder / scheduler / "scheduler_config.json").write_text(
        json.dumps({**SCHEDULE, **dict(schedule)})
    )
    if save == "safetensors":
        safetensors.torch.save_file(
            network.state_dict(), folder / home / "diffusion_pytorch_model.safetensors"
        )
    else:
        torch.save(network.state_dict(), folder / home / "diffusion_pytorch_model.bin")
    if card is not None:
        (folder / "bench.json").write_text(json.dumps(card))
    return folder


def loaded(folder: Path, **params) -> DiffusionModel:
    return Folder(FolderParams(path=str(folder), **params)).load()


def output(network, index=7):
    with torch.no_grad():
        return network(Z, torch.full((2,), index)).sample
