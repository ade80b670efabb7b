"""`guided:PATH`, against an independent forward pass."""

import math
import zipfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bench.diffusion import guided as guided_module
from bench.diffusion.guided import URL, Guided, GuidedParams, configuration, layer_names
from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.unet import build_unet
from bench.noise import isolated
from tests.diffusion.helpers import diffusers  # noqa: F401  # skips where it is missing
from tests.toys import message

TINY = {"size": 16, "channels": (32, 64, 64), "layers": 1, "attention": (8, 4), "head": 16}


class Reference:
    """Forward pass of the network of guided diffusion on its own state dict, written from the
    paper's description.
    """

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
        scale, shift = self.linear(f"{name}.emb_layers.1", F.silu(time))[:, :, None, None].chunk(
            2, 1
        )
        h = F.silu(self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift)
        x = resize(x)
        if f"{name}.skip_connection.weight" in self.state:
            x = self.conv(f"{name}.skip_connection", x)
        return x + self.conv(f"{name}.out_layers.3", h)

    def attention(self, name, x):
        flat = x.flatten(2)
        qkv = F.conv1d(
            self.norm(f"{name}.norm", flat),
            self.state[f"{name}.qkv.weight"],
            self.state[f"{name}.qkv.bias"],
        )
        heads = []
        for part in qkv.split(3 * self.head, 1):
            query, key, value = part.split(self.head, 1)
            weights = torch.einsum("nct,ncs->nts", query, key).div(math.sqrt(self.head)).softmax(-1)
            heads.append(torch.einsum("nts,ncs->nct", weights, value))
        out = F.conv1d(
            torch.cat(heads, 1),
            self.state[f"{name}.proj_out.weight"],
            self.state[f"{name}.proj_out.bias"],
        )
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
                    x = self.residual(
                        f"output_blocks.{number}.{1 + attends}",
                        x,
                        time,
                        lambda x: F.interpolate(x, scale_factor=2.0),
                    )
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
    return {
        name: torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        for name, shape in shapes.items()
    }


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
        predicted = model(images, index)
        expected = Reference(tiny_state, **TINY)(images, torch.full((2,), index))
        assert expected.std() > 0.1
        assert torch.allclose(predicted.epsilon, expected[:, :3], atol=1e-4)
        assert torch.allclose(predicted.log_variance, expected[:, 3:], atol=1e-4)
    assert torch.equal(model.alpha_bar, linear_alpha_bar())
    assert model.shape == (3, 16, 16) and model.trained_steps == 1000 and model.trained_on == ()


def test_guided_with_more_layers(tmp_path):
    shape = {"size": 8, "channels": (32, 32), "layers": 2, "attention": (8,), "head": 8}
    state = guided_state((32, 32), 2, [True, False])
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    predicted = guided(tmp_path, state, **shape)(images, 40)
    assert torch.allclose(
        torch.cat([predicted.epsilon, predicted.log_variance], 1),
        Reference(state, **shape)(images, torch.tensor([40])),
        atol=1e-4,
    )


def test_the_published_network_has_its_size_and_every_layer_a_name():
    asked = GuidedParams(path="net.pt")
    with torch.device("meta"):
        state = build_unet(configuration(asked)).state_dict()
    assert sum(value.numel() for value in state.values()) == 552_814_086
    layers = {key.rpartition(".")[0] for key in state}
    ours = {
        inner
        for name in dict(layer_names(asked)).values()
        for inner in ([name[:-3] + f"to_{x}" for x in "qkv"] if name.endswith("qkv") else [name])
    }
    assert layers <= ours and all("shortcut" in name for name in ours - layers)


def test_guided_refuses(tiny_state, tmp_path):
    def line(change=None, **params):
        state = dict(tiny_state)
        state.update(change or {})
        return message(
            lambda: guided(tmp_path, {k: v for k, v in state.items() if v is not None}, **params)
        )

    missing = message(lambda: Guided(GuidedParams(path=str(tmp_path / "none.pt"))).load())
    assert "no such file" in missing and URL in missing
    assert "lacks the tensor 'conv_out.bias'" in line({"out.2.bias": None})
    assert "surplus tensor 'label_emb.weight'" in line({"label_emb.weight": torch.zeros(10, 128)})
    assert "'conv_in.weight'" in line({"input_blocks.0.0.weight": torch.zeros(32, 1, 3, 3)})
    assert "has shape (100, 64, 1)" in line({"middle_block.1.qkv.weight": torch.zeros(100, 64, 1)})
    assert "cannot be halved 2 times" in line(size=6)
    assert "each must be a multiple of 32" in line(channels=(32, 48, 64))
    assert "heads of 24 channels" in line(head=24)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:5000])
    assert "damaged or a pickled object" in message(
        lambda: Guided(GuidedParams(path=str(tmp_path / "cut.pt"), **TINY)).load()
    )


def test_guided_names_imagenet_for_the_published_network_alone(monkeypatch, tmp_path):
    with isolated(0):
        linear = torch.nn.Linear(1, 1)
    monkeypatch.setattr(guided_module, "build_unet", lambda config: linear)
    state = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
    monkeypatch.setattr(guided_module, "converted", lambda *_: state.items())
    torch.save(state, tmp_path / "net.pt")
    for changes, expected in (({}, ("imagenet/train",)), ({"layers": 1}, ())):
        assert (
            Guided(GuidedParams(path=str(tmp_path / "net.pt"), **changes)).load().trained_on
            == expected
        )


def bomb(path, size=2 * 10**8):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * size)
    return path


def test_guided_refuses_other_files_before_it_builds(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.diffusion.guided.build_unet", None)
    (tmp_path / "words").write_text("root:x:0:0:root:/root:/bin/bash\n")
    for path, word in ((tmp_path / "words", "neither"), (bomb(tmp_path / "bomb.pt"), "unpack to")):
        text = message(lambda path=path: Guided(GuidedParams(path=str(path))).load())
        assert word in text and "\n" not in text
