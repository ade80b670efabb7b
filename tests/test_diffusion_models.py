"""Diffusion models: where they come from and how they are trained."""

import hashlib
import json
import math
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from bench.diffusion import zoo
from bench.diffusion.folder import Folder, FolderParams
from bench.diffusion.guided import URL, Guided, GuidedParams
from bench.diffusion.hub import Hf, HfParams
from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.schedule import Schedule, alpha_bar
from bench.diffusion.unet import build_unet
from bench.fingerprint import fingerprint
from bench.noise import isolated
from tests.toys import message

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


@pytest.fixture(scope="module")
def network():
    return build_unet(CONFIG, seed=1).eval()


def written(folder: Path, network, *, config=(), schedule=(), card=None, home="", scheduler="", save="safetensors") -> Path:
    """A folder in diffusers' layout."""
    for place in (folder / home, folder / scheduler):
        place.mkdir(parents=True, exist_ok=True)
    (folder / home / "config.json").write_text(json.dumps({**CONFIG, **dict(config)}))
    (folder / scheduler / "scheduler_config.json").write_text(json.dumps({**SCHEDULE, **dict(schedule)}))
    if save == "safetensors":
        safetensors.torch.save_file(network.state_dict(), folder / home / "diffusion_pytorch_model.safetensors")
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


# guided: ---------------------------------------------------------------------------------------------------------------

TINY = {"size": 16, "channels": (32, 64, 64), "layers": 1, "attention": (8, 4), "head": 16}


class Reference:
    """Forward pass of the network of guided diffusion on its own state dict, written from the paper's description."""

    def __init__(self, state, *, size, channels, layers, attention, head):
        self.state, self.channels, self.layers, self.head = state, channels, layers, head
        self.attends = [size // 2**level in attention for level in range(len(channels))]

    def norm(self, name, x):
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)

    def conv(self, name, x):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def residual(self, name, x, time, resize=lambda x: x):
        h = self.conv(f"{name}.in_layers.2", resize(F.silu(self.norm(f"{name}.in_layers.0", x))))
        scale, shift = self.linear(f"{name}.emb_layers.1", F.silu(time))[:, :, None, None].chunk(2, 1)
        h = F.silu(self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift)
        x = resize(x)
        if f"{name}.skip_connection.weight" in self.state:
            x = self.conv(f"{name}.skip_connection", x)
        return x + self.conv(f"{name}.out_layers.3", h)

    def attention(self, name, x):
        flat = x.flatten(2)
        qkv = F.conv1d(self.norm(f"{name}.norm", flat), self.state[f"{name}.qkv.weight"], self.state[f"{name}.qkv.bias"])
        heads = []
        for part in qkv.split(3 * self.head, 1):
            query, key, value = part.split(self.head, 1)
            weights = torch.einsum("nct,ncs->nts", query, key).div(math.sqrt(self.head)).softmax(-1)
            heads.append(torch.einsum("nts,ncs->nct", weights, value))
        out = F.conv1d(torch.cat(heads, 1), self.state[f"{name}.proj_out.weight"], self.state[f"{name}.proj_out.bias"])
        return (flat + out).reshape(x.shape)

    def __call__(self, x, times):
        half = self.channels[0] // 2
        angles = times[:, None].float() * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        time = torch.cat([angles.cos(), angles.sin()], 1)
        time = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", time)))
        x = self.conv("input_blocks.0.0", x)
        kept, number = [x], 1
        for level, attends in enumerate(self.attends):
            for _ in range(self.layers):
                x = self.residual(f"input_blocks.{number}.0", x, time)
                x = self.attention(f"input_blocks.{number}.1", x) if attends else x
                kept.append(x)
                number += 1
            if level < len(self.channels) - 1:
                x = self.residual(f"input_blocks.{number}.0", x, time, lambda x: F.avg_pool2d(x, 2))
                kept.append(x)
                number += 1
        x = self.attention("middle_block.1", self.residual("middle_block.0", x, time))
        x = self.residual("middle_block.2", x, time)
        number = 0
        for level, attends in reversed(list(enumerate(self.attends))):
            for layer in range(self.layers + 1):
                x = self.residual(f"output_blocks.{number}.0", torch.cat([x, kept.pop()], 1), time)
                x = self.attention(f"output_blocks.{number}.1", x) if attends else x
                if level and layer == self.layers:
                    x = self.residual(f"output_blocks.{number}.{1 + attends}", x, time, lambda x: F.interpolate(x, scale_factor=2.0))
                number += 1
        assert not kept
        return self.conv("out.2", F.silu(self.norm("out.0", x)))


def guided_state(channels, layers, attends, seed=0):
    """Random weights under the published names."""
    shapes = {}

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name, into, out):
        layer(f"{name}.in_layers.0", into)
        layer(f"{name}.in_layers.2", out, into, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * out, 4 * channels[0])
        layer(f"{name}.out_layers.0", out)
        layer(f"{name}.out_layers.3", out, out, 3, 3)
        if into != out:
            layer(f"{name}.skip_connection", out, into, 1, 1)

    def attention(name, width):
        layer(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.proj_out", width, width, 1)

    layer("time_embed.0", 4 * channels[0], channels[0])
    layer("time_embed.2", 4 * channels[0], 4 * channels[0])
    layer("input_blocks.0.0", channels[0], 3, 3, 3)
    widths, width, number = [channels[0]], channels[0], 1
    for level, out in enumerate(channels):
        for _ in range(layers):
            residual(f"input_blocks.{number}.0", width, out)
            if attends[level]:
                attention(f"input_blocks.{number}.1", out)
            width, number = out, number + 1
            widths.append(width)
        if level < len(channels) - 1:
            residual(f"input_blocks.{number}.0", width, width)
            widths.append(width)
            number += 1
    residual("middle_block.0", width, width)
    attention("middle_block.1", width)
    residual("middle_block.2", width, width)
    number = 0
    for level in reversed(range(len(channels))):
        for i in range(layers + 1):
            residual(f"output_blocks.{number}.0", width + widths.pop(), channels[level])
            width = channels[level]
            if attends[level]:
                attention(f"output_blocks.{number}.1", width)
            if level and i == layers:
                residual(f"output_blocks.{number}.{1 + attends[level]}", width, width)
            number += 1
    layer("out.0", width)
    layer("out.2", 6, width, 3, 3)
    generator = torch.Generator().manual_seed(seed)
    # Of a size at which attention is far from uniform.
    return {name: torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def tiny_state():
    return guided_state(TINY["channels"], TINY["layers"], [False, True, True])


def guided(path: Path, state, **changes) -> DiffusionModel:
    torch.save(state, path / "net.pt")
    return Guided(GuidedParams(path=str(path / "net.pt"), **{**TINY, **changes})).load()


def test_guided_equals_an_independent_forward_pass(tiny_state, tmp_path):
    model = guided(tmp_path, tiny_state)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for index in (0, 3, 999):
        found = model(images, index)
        due = Reference(tiny_state, **TINY)(images, torch.full((2,), index))
        assert due.std() > 0.1
        assert torch.allclose(found.epsilon, due[:, :3], atol=1e-4)
        assert torch.allclose(found.log_variance, due[:, 3:], atol=1e-4)
    assert torch.equal(model.alpha_bar, linear_alpha_bar())
    assert model.shape == (3, 16, 16) and model.trained_steps == 1000 and model.trained_on == ()


def test_guided_with_more_layers(tmp_path):
    shape = {"size": 8, "channels": (32, 32), "layers": 2, "attention": (8,), "head": 8}
    state = guided_state((32, 32), 2, [True, False])
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = guided(tmp_path, state, **shape)(images, 40)
    assert torch.allclose(torch.cat([found.epsilon, found.log_variance], 1), Reference(state, **shape)(images, torch.tensor([40])), atol=1e-4)
