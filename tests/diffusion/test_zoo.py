"""The diffusion models that come with the suite."""

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bench.diffusion import zoo
from bench.diffusion.folder import Folder
from bench.diffusion.unet import build_unet
from tests.diffusion.helpers import CONFIG, Z, output, written
from tests.toys import message


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
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    model = zoo.Zoo(zoo.ZooParams(name="tiny", **params)).load()
    expected = networks[file].half().float() if "steps" in file else networks[file]
    assert torch.equal(model(Z, 7).epsilon, output(expected))
    assert next(model.parameters()).dtype == torch.float32
    assert model.trained_on == ("toy/train",) and model.trained_steps == 80
    series = [(150, "ema"), (150, "raw"), (400, "ema"), (400, "raw")]
    assert zoo.Zoo(zoo.ZooParams(name="tiny")).kept() == series and zoo.names() == ["tiny"]
    assert Folder(path=str(tmp_path / "tiny")).kept() == series
    (tmp_path / "tiny/steps/raw-000150.safetensors").unlink()
    assert Folder(path=str(tmp_path / "tiny")).kept() == [series[0], *series[2:]]
    (tmp_path / "tiny/bench.json").unlink()
    assert Folder(path=str(tmp_path / "tiny")).kept() == []


def test_the_zoo_refuses(network, tmp_path, monkeypatch):
    kept(tmp_path / "tiny", network)
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    load = lambda **params: message(lambda: zoo.Zoo(zoo.ZooParams(**params)).load())  # noqa: E731
    assert "no weights after 7 steps: it keeps 150, 400" in load(name="tiny", step=7)
    assert "Did you mean 'tiny'" in load(name="tinny") and "Did you mean 'tiny'" in message(
        lambda: zoo.Zoo(name="tinny").kept()
    )
    (tmp_path / "tiny/steps/ema-000150.safetensors").write_bytes(
        (tmp_path / "tiny/raw.safetensors").read_bytes()
    )
    assert "has SHA-256" in load(name="tiny", step=150)
    (tmp_path / "tiny/raw.safetensors").unlink()
    assert "has no raw.safetensors" in load(name="tiny", weights="raw")


@pytest.mark.parametrize("name", zoo.names())
def test_shipped_models_are_whole(name):
    folder = zoo.WEIGHTS / name
    held = {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}
    assert held == set(json.loads((folder / "bench.json").read_text())["sha256"])
    assert sum(path.stat().st_size for path in folder.rglob("*.*")) < 15e6
    for step, weights in zoo.Zoo(name=name).kept():
        model = zoo.Zoo(zoo.ZooParams(name=name, weights=weights, step=step)).load()
        assert all(bool(value.isfinite().all()) for value in model.parameters())
