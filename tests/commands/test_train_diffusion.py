"""The command `bench train-diffusion`."""

import json
from pathlib import Path

import pytest
import torch

from bench.cli import execute
from bench.commands import train_diffusion
from bench.data.mnist5k import Mnist5k
from bench.diffusion import training
from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.training import DiffusionRecipe, DiffusionRun
from bench.engine.fingerprint import fingerprint
from bench.noise import isolated
from bench.spec import Params
from tests.diffusion.helpers import diffusers, loaded
from tests.toys import message

RECIPE = DiffusionRecipe(
    steps=6, batch=4, kept=(2, 4), schedule=150, blocks=(8, 8), heads=4, groups=4
)


@pytest.fixture
def small(monkeypatch):
    """mnist5k under a tiny recipe, reported and stored every two steps."""
    monkeypatch.setitem(training.RECIPES, "mnist5k", RECIPE)
    monkeypatch.setattr(training, "REPORT_EVERY", 2)
    monkeypatch.setattr(train_diffusion, "STORE_EVERY", 2)
    monkeypatch.setattr(train_diffusion, "MEASURED_IMAGES", 40)


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
        expected = {
            key: value if step == 6 else value.half().float() for key, value in state.items()
        }
        assert all(
            torch.equal(value, expected[key]) for key, value in model.network.state_dict().items()
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
    assert "give 0 to" in message(lambda: trained(tmp_path / "m", seed=-1))


def test_fewer_steps_keep_what_lies_before(small, tmp_path):
    trained(tmp_path / "m", steps=3)
    assert json.loads((tmp_path / "m/bench.json").read_text())["steps"] == [2, 3]


def test_the_command(small, tmp_path, capsys):
    assert (
        execute(["train-diffusion", "mnist5k", "--out", str(tmp_path / "m"), "--steps", "1"]) == 0
    )
    assert "error of the predicted noise on 40 test images" in capsys.readouterr().out
    assert execute(["train-diffusion", "mnist5k", "--out", str(tmp_path / "m")]) == 2
