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

from bench.cli import execute
from bench.commands import train_diffusion
from bench.data.mnist5k import Mnist5k
from bench.diffusion import guided as guided_module
from bench.diffusion import training, zoo
from bench.diffusion.folder import Folder, FolderParams
from bench.diffusion.guided import URL, Guided, GuidedParams, _names, configuration
from bench.diffusion.hub import Hf, HfParams
from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.schedule import Schedule, alpha_bar
from bench.diffusion.training import DiffusionRecipe, DiffusionRun
from bench.diffusion.unet import build_unet
from bench.engine.fingerprint import fingerprint
from bench.noise import isolated
from bench.spec import Params
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


# guided: ------------------------------------------------------------------------------------------

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
    assert torch.allclose(
        torch.cat([found.epsilon, found.log_variance], 1),
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
        for name in dict(_names(asked)).values()
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
    for changes, due in (({}, ("imagenet/train",)), ({"layers": 1}, ())):
        assert (
            Guided(GuidedParams(path=str(tmp_path / "net.pt"), **changes)).load().trained_on == due
        )


# folder: ------------------------------------------------------------------------------------------


def test_a_folder_of_diffusers(network, tmp_path):
    model = loaded(written(tmp_path / "m", network))
    with torch.no_grad():
        found = model(Z, 7)
    assert torch.equal(found.epsilon, output(network)) and found.log_variance is None
    assert (
        model.shape == (1, 8, 8)
        and model.steps == model.trained_steps == 100
        and model.trained_on == ()
    )
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert torch.allclose(
        model.alpha_bar, (1 - torch.linspace(1e-3, 0.05, 100, dtype=torch.float64)).cumprod(0)
    )


@pytest.mark.parametrize(
    ("places", "params"),
    [
        ({"home": "unet", "scheduler": "scheduler"}, {}),
        ({"home": "unet_ema", "scheduler": "scheduler"}, {"subfolder": "unet_ema"}),
        ({"save": "bin"}, {}),
        ({"home": "unet", "save": "bin"}, {}),
    ],
)
def test_other_layouts(network, tmp_path, places, params):
    model = loaded(written(tmp_path / "m", network, **places), **params)
    assert torch.equal(model(Z, 7).epsilon, output(network))


def test_what_diffusers_saves(network, tmp_path):
    network.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler(num_train_timesteps=50).save_pretrained(tmp_path / "scheduler")
    model = loaded(tmp_path)
    assert torch.equal(model(Z, 7).epsilon, output(network)) and model.steps == 50


def test_old_names_of_attention_layers(network, tmp_path):
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in network.state_dict().items():
        for new, old in names.items():
            key = key.replace(f".{new}.", f".{old}.")
        state[key] = value
    assert "mid_block.attentions.0.proj_attn.weight" in state
    folder = written(tmp_path / "m", network)
    safetensors.torch.save_file(state, folder / "diffusion_pytorch_model.safetensors")
    assert torch.equal(loaded(folder)(Z, 7).epsilon, output(network))


def test_learned_variance(tmp_path):
    network = build_unet({**CONFIG, "out_channels": 2}).eval()
    folder = written(
        tmp_path / "m",
        network,
        config={"out_channels": 2},
        schedule={"variance_type": "learned_range"},
    )
    found = loaded(folder)(Z, 7)
    assert torch.equal(torch.cat([found.epsilon, found.log_variance], 1), output(network))
    folder = written(tmp_path / "fixed", network, config={"out_channels": 2})
    assert "variance_type in" in message(
        lambda: loaded(folder)
    ) and "2 output channels, not 1" in message(lambda: loaded(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "beta_schedule": "linear",
            "beta_start": 1e-4,
            "beta_end": 0.02,
            "num_train_timesteps": 1000,
        },
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "num_train_timesteps": 1000,
        },
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300},
        {"beta_schedule": "linear", "trained_betas": [0.1, 0.3, 0.2], "num_train_timesteps": 3},
    ],
)
def test_schedules_are_those_of_diffusers(changes):
    theirs = diffusers.DDPMScheduler(**changes).alphas_cumprod
    ours = alpha_bar(Schedule(**changes))
    assert ours.dtype == torch.float64
    # diffusers multiplies in float32, and near 0 it loses the last levels of the cosine.
    assert torch.allclose(ours, theirs.double(), rtol=2e-4, atol=1e-7)


def test_folders_that_cannot_be_used(network, tmp_path):
    count = iter(range(100))

    def line(spoil=None, **options):
        folder = written(tmp_path / str(next(count)), network, **options)
        if spoil:
            spoil(folder)
        return message(lambda: loaded(folder))

    def weights(state):
        return lambda folder: safetensors.torch.save_file(
            state, folder / "diffusion_pytorch_model.safetensors"
        )

    state = network.state_dict()
    assert "no such folder" in message(lambda: loaded(tmp_path / "none"))
    assert "has no config.json or unet/config.json" in line(lambda f: (f / "config.json").unlink())
    assert "has no scheduler_config.json or scheduler/" in line(
        lambda f: (f / "scheduler_config.json").unlink()
    )
    assert "has no diffusion_pytorch_model.safetensors" in line(
        lambda f: (f / "diffusion_pytorch_model.safetensors").unlink()
    )
    assert "not readable JSON" in line(lambda f: (f / "config.json").write_text("{"))
    assert "not the configuration of a network" in line(
        lambda f: (f / "config.json").write_text("[]")
    )
    assert "not complete safetensors" in line(
        lambda f: (f / "diffusion_pytorch_model.safetensors").write_bytes(b"0" * 99)
    )
    assert "lacks the tensor" in line(
        weights({k: v for k, v in state.items() if k != "conv_out.bias"})
    )
    assert "surplus tensor" in line(weights({**state, "extra": torch.zeros(1)}))
    assert "has shape (3,), not (1,)" in line(weights({**state, "conv_out.bias": torch.zeros(3)}))
    assert "check config.json" in line(config={"down_block_types": ["Nothing2D", "DownBlock2D"]})
    assert "_class_name='Transformer2DModel'" in line(config={"_class_name": "Transformer2DModel"})
    assert "num_class_embeds=10" in line(config={"num_class_embeds": 10})
    assert "set in_channels and sample_size" in line(config={"sample_size": None})
    assert "prediction_type: input should be 'epsilon'" in line(
        schedule={"prediction_type": "v_prediction"}
    )
    assert "beta_schedule: input should be" in line(schedule={"beta_schedule": "sigmoid"})
    assert "rescale_betas_zero_snr" in line(schedule={"rescale_betas_zero_snr": True})
    assert "variance_type: input should be" in line(schedule={"variance_type": "learned"})
    assert "not 100 numbers between 0 and 1" in line(schedule={"trained_betas": [0.5]})
    assert "lists none" in line(schedule={"beta_schedule": "trained_betas"})
    assert "more than the schedule has" in line(card={"trained_steps": 101})
    assert "but its description says abc" in line(
        card={"sha256": {"diffusion_pytorch_model.safetensors": "abc"}}
    )
    assert "trained_on: " in line(card={"trained_on": 7})
    folder = written(tmp_path / "m", network)
    assert "no weights after 5 steps: it keeps only the last ones" in message(
        lambda: loaded(folder, step=5)
    )


def test_nothing_is_unpickled(network, tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    folder = written(tmp_path / "m", network, save="bin")
    torch.save({"conv_in.weight": Evil()}, folder / "diffusion_pytorch_model.bin")
    assert "never unpickled" in message(lambda: loaded(folder))


def test_without_diffusers(network, tmp_path, monkeypatch):
    folder = written(tmp_path / "m", network)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install 'adversarial-bench[diffusion]'" in message(lambda: loaded(folder))


# zoo: ---------------------------------------------------------------------------------------------


def kept(folder: Path, network) -> dict[str, torch.nn.Module]:
    """A folder with all kinds of weights, and the network of each."""
    written(folder, network)
    (folder / "steps").mkdir()
    networks = {"diffusion_pytorch_model": network}
    for seed, name in enumerate(("raw", "steps/ema-000150", "steps/raw-000150"), 2):
        networks[name] = build_unet(CONFIG, seed=seed).eval()
        state = {
            key: value.half() if "steps" in name else value
            for key, value in networks[name].state_dict().items()
        }
        safetensors.torch.save_file(state, folder / f"{name}.safetensors")
    sums = {
        f"{name}.safetensors": hashlib.sha256(
            (folder / f"{name}.safetensors").read_bytes()
        ).hexdigest()
        for name in networks
    }
    card = {
        "trained_on": ["toy/train"],
        "trained_steps": 80,
        "steps": [150, 400],
        "sha256": sums,
        "recipe": {"steps": 400},
    }
    (folder / "bench.json").write_text(json.dumps(card))
    return networks


@pytest.mark.parametrize(
    ("params", "file"),
    [
        ({}, "diffusion_pytorch_model"),
        ({"step": 400}, "diffusion_pytorch_model"),
        ({"weights": "raw"}, "raw"),
        ({"weights": "raw", "step": 400}, "raw"),
        ({"step": 150}, "steps/ema-000150"),
        ({"weights": "raw", "step": 150}, "steps/raw-000150"),
    ],
)
def test_the_zoo_keeps_averaged_raw_and_earlier_weights(
    network, tmp_path, monkeypatch, params, file
):
    networks = kept(tmp_path / "tiny", network)
    monkeypatch.setattr(zoo, "_WEIGHTS", tmp_path)
    model = zoo.Zoo(zoo.ZooParams(name="tiny", **params)).load()
    due = networks[file].half().float() if "steps" in file else networks[file]
    assert torch.equal(model(Z, 7).epsilon, output(due))
    assert next(model.parameters()).dtype == torch.float32
    assert model.trained_on == ("toy/train",) and model.trained_steps == 80
    assert zoo.steps_of("tiny") == (150, 400) and zoo.names() == ["tiny"]


def test_the_zoo_refuses(network, tmp_path, monkeypatch):
    kept(tmp_path / "tiny", network)
    monkeypatch.setattr(zoo, "_WEIGHTS", tmp_path)
    load = lambda **params: message(lambda: zoo.Zoo(zoo.ZooParams(**params)).load())  # noqa: E731
    assert "no weights after 7 steps: it keeps 150, 400" in load(name="tiny", step=7)
    assert "Did you mean 'tiny'" in load(name="tinny") and "Did you mean 'tiny'" in message(
        lambda: zoo.steps_of("tinny")
    )
    (tmp_path / "tiny/steps/ema-000150.safetensors").write_bytes(
        (tmp_path / "tiny/raw.safetensors").read_bytes()
    )
    assert "has SHA-256" in load(name="tiny", step=150)
    (tmp_path / "tiny/raw.safetensors").unlink()
    assert "has no raw.safetensors" in load(name="tiny", weights="raw")


@pytest.mark.parametrize("name", zoo.names())
def test_shipped_models_are_whole(name):
    folder = zoo._WEIGHTS / name
    held = {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}
    assert held == set(json.loads((folder / "bench.json").read_text())["sha256"])
    assert sum(path.stat().st_size for path in folder.rglob("*.*")) < 15e6
    for step in zoo.steps_of(name):
        for weights in ("ema", "raw"):
            model = zoo.Zoo(zoo.ZooParams(name=name, weights=weights, step=step)).load()
            assert all(bool(value.isfinite().all()) for value in model.parameters())


# hf: ----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(network, tmp_path, monkeypatch):
    """A stand-in for the hub's client: a folder, and the files asked for."""
    package = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repo, file, *, revision, local_files_only):
        asked.append((repo, file, revision, local_files_only))
        if not (tmp_path / repo / file).is_file():
            raise package.errors.EntryNotFoundError("404")
        return str(tmp_path / repo / file)

    monkeypatch.delenv("BENCH_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(package, "hf_hub_download", download)
    return asked


def test_a_repository_of_the_hub(network, tmp_path, hub):
    repo = "google/ddpm-cifar10-32"
    written(tmp_path / repo, network, save="bin")
    model = Hf(HfParams(repo=repo, revision="abc")).load()
    assert torch.equal(model(Z, 7).epsilon, output(network)) and model.trained_on == (
        "cifar10/train",
    )
    names = [
        "config.json",
        "scheduler_config.json",
        "bench.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
    ]
    assert hub == [(repo, name, "abc", False) for name in names]
    written(tmp_path / "me/net", network, home="unet", scheduler="scheduler")
    assert Hf(HfParams(repo="me/net")).load().trained_on == ()
    # safetensors are there, so nothing else is asked for.
    assert hub[-1] == ("me/net", "unet/diffusion_pytorch_model.safetensors", None, False)


def test_the_hub_offline_and_out_of_reach(tmp_path, hub, monkeypatch):
    package = sys.modules["huggingface_hub"]

    def unreachable(*_, **__):
        raise package.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(package, "hf_hub_download", unreachable)
    load = lambda: message(lambda: Hf(HfParams(repo="me/net")).load())  # noqa: E731
    assert "LocalEntryNotFoundError: no connection" in load()
    assert "give folder:PATH with a copy of https://huggingface.co/me/net" in load()
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    assert (
        "BENCH_OFFLINE is set; go online, or give folder:PATH with a copy of "
        "https://huggingface.co/me/net" in load()
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install" in load()


# Fingerprints -------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_model(network, tmp_path):
    folder = written(tmp_path / "m", network, card={"trained_steps": 90})
    one = fingerprint(loaded(folder))
    assert one == fingerprint(loaded(folder))
    variants = {
        "weights": written(tmp_path / "w", build_unet(CONFIG, seed=2), card={"trained_steps": 90}),
        "schedule": written(
            tmp_path / "s", network, schedule={"beta_end": 0.051}, card={"trained_steps": 90}
        ),
        "trained range": written(tmp_path / "r", network, card={"trained_steps": 91}),
        "what the weights do": written(
            tmp_path / "c", network, config={"flip_sin_to_cos": False}, card={"trained_steps": 90}
        ),
    }
    others = {fingerprint(loaded(folder)) for folder in variants.values()}
    assert len({one, *others}) == 1 + len(variants)


def test_a_fingerprint_outlives_a_version_of_diffusers(network, monkeypatch):
    one = fingerprint(network)
    for part in network.modules():
        if type(part).__module__.startswith("diffusers"):
            monkeypatch.setattr(part, "a_new_attribute", 3, raising=False)
    # An older version without the parameters that were added since.
    older = {
        key: value
        for key, value in network.config.items()
        if key not in ("num_train_timesteps", "add_attention")
    }
    other = {
        **older,
        "_diffusers_version": "9.9",
        "_use_default_values": ["dropout"],
        "sample_size": (8, 8),
    }
    monkeypatch.setattr(
        network, "_internal_dict", type(network.config)({**other, "sample_size": 8})
    )
    monkeypatch.setattr("inspect.getsource", lambda kind: "another source")
    assert fingerprint(network) == one
    monkeypatch.setattr(network, "_internal_dict", type(network.config)(other))
    assert fingerprint(network) != one


def test_a_fingerprint_sees_what_others_put_into_the_network(network):
    class Processor:
        def __call__(self, attention, states, *_, **__):
            return states

    one, attention = fingerprint(network), network.mid_block.attentions[0]
    before = attention.processor
    attention.set_processor(Processor())
    two = fingerprint(network)
    attention.set_processor(before)
    handle = network.mid_block.register_forward_hook(lambda module, inputs, output: 2 * output)
    three = fingerprint(network)
    handle.remove()
    assert len({one, two, three}) == 3 and fingerprint(network) == one


# Training -----------------------------------------------------------------------------------------

RECIPE = DiffusionRecipe(
    steps=6, batch=4, kept=(2, 4), schedule=150, blocks=(8, 8), heads=4, groups=4
)


@pytest.fixture
def small(monkeypatch):
    """mnist5k under a tiny recipe, reported and stored every two steps."""
    monkeypatch.setitem(training.RECIPES, "mnist5k", RECIPE)
    monkeypatch.setattr(training, "REPORT_EVERY", 2)
    monkeypatch.setattr(train_diffusion, "STORE_EVERY", 2)
    monkeypatch.setattr(train_diffusion, "_MEASURED_IMAGES", 40)


def trained(out: Path, steps=None, seed=0) -> str:
    return train_diffusion.train_and_save("mnist5k", out, seed=seed, steps=steps, device="cpu")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_interrupted_training_ends_in_the_same_bits(small, tmp_path, monkeypatch, capsys):
    said = trained(tmp_path / "whole")
    assert (
        f"use it: folder:{tmp_path}/whole" in said and " at 100" in said and " at 200" not in said
    )
    assert "step 6/6, mean loss" in capsys.readouterr().err

    advance, count = DiffusionRun.advance, iter(range(10))

    def interrupted(run):
        if next(count) == 2:
            raise KeyboardInterrupt
        return advance(run)

    monkeypatch.setattr(DiffusionRun, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut")
    assert (tmp_path / "cut.checkpoint").is_file() and not (tmp_path / "cut").exists()
    monkeypatch.setattr(DiffusionRun, "advance", advance)
    assert "another recipe, seed or data" in message(lambda: trained(tmp_path / "cut", seed=1))
    trained(tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_a_trained_folder(small, tmp_path):
    out = tmp_path / "m"
    trained(out)
    card = json.loads((out / "bench.json").read_text())
    assert (
        card["trained_on"] == ["mnist5k/train"]
        and card["trained_steps"] == 150
        and card["steps"] == [2, 4, 6]
    )
    assert (
        card["recipe"]["seed"] == 0
        and card["recipe"]["batch"] == 4
        and card["measured"]["images"] == "mnist5k/test"
    )
    steps = {
        f"steps/{weights}-00000{step}.safetensors" for weights in ("ema", "raw") for step in (2, 4)
    }
    assert {"diffusion_pytorch_model.safetensors", "raw.safetensors", *steps} == set(card["sha256"])
    assert set(content(out)) == {
        *card["sha256"],
        "bench.json",
        "config.json",
        "scheduler_config.json",
    }
    run = DiffusionRun(Mnist5k(Params()).train().pixels(), RECIPE, 0)
    while run.done < 6:
        run.advance()
    states = {("raw", step): state for step, state in run.kept.raw.items()}
    states.update({("ema", step): state for step, state in run.kept.average.items()})
    assert len(states) == 6
    for (weights, step), state in states.items():
        model = loaded(out, weights=weights, step=step)
        due = {key: value if step == 6 else value.half().float() for key, value in state.items()}
        assert all(
            torch.equal(value, due[key]) for key, value in model.network.state_dict().items()
        )
    assert torch.equal(model.alpha_bar, linear_alpha_bar(150)) and model.shape == (1, 28, 28)


def test_diffusers_reads_a_trained_folder(small, tmp_path):
    trained(tmp_path / "m")
    with isolated(0):
        theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "m").eval()
    ours = loaded(tmp_path / "m")
    z = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(theirs(z, 7).sample, ours(z, 7).epsilon)
    # What from_pretrained adds to the configuration is no other network.
    assert fingerprint(theirs) == fingerprint(ours.network)
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "m")
    assert torch.allclose(scheduler.alphas_cumprod.double(), ours.alpha_bar, rtol=1e-5)


def test_the_measured_error_of_known_denoisers():
    class Constant(torch.nn.Module):
        def forward(self, z, times):
            return torch.full_like(z, self.value)

    images = Mnist5k(Params()).test().first(300)
    for value in (0.0, 2.0):
        network = Constant()
        network.value = value
        model = DiffusionModel(network, linear_alpha_bar(), (1, 28, 28))
        # Predicting c errs by the noise's variance and c squared, 1 + c^2.
        error = train_diffusion.denoising_error(model, images, 50)
        assert abs(error - (1 + value**2)) < 0.05
        assert error == pytest.approx(
            train_diffusion.denoising_error(model, images, 50, batch=7), rel=1e-6
        )
        assert error != train_diffusion.denoising_error(model, images, 100)


def test_training_refuses(small, tmp_path):
    (tmp_path / "there").mkdir()
    assert "is there already" in message(lambda: trained(tmp_path / "there"))
    assert "in a folder that exists" in message(lambda: trained(tmp_path / "no" / "m"))
    assert "trains nothing" in message(lambda: trained(tmp_path / "m", steps=0))
    assert "give 0 or more" in message(lambda: trained(tmp_path / "m", seed=-1))


def test_fewer_steps_keep_what_lies_before(small, tmp_path):
    trained(tmp_path / "m", steps=3)
    assert json.loads((tmp_path / "m/bench.json").read_text())["steps"] == [2, 3]


def test_the_command(small, tmp_path, capsys):
    assert execute(["train-diffusion", "mnist5k", "--out", str(tmp_path / "m"), "--steps", "1"]) == 0
    assert "error of the predicted noise on 40 test images" in capsys.readouterr().out
    assert execute(["train-diffusion", "mnist5k", "--out", str(tmp_path / "m")]) == 2
