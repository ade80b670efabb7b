"""The command `bench train-diffusion`."""

import json
from pathlib import Path

import pytest
import torch

from bench.cli import execute
from bench.commands import train_diffusion
from bench.data.mnist5k import Mnist5k
from bench.diffusion import recipe as recipes
from bench.diffusion import training
from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.recipe import DiffusionRecipe, read_recipe
from bench.diffusion.training import DiffusionRun, augmented
from bench.engine.fingerprint import fingerprint
from bench.errors import BadInput
from bench.noise import Noise, Stream, isolated
from bench.spec import Params
from tests.diffusion.helpers import diffusers, loaded
from tests.toys import message

RECIPE = DiffusionRecipe(
    steps=6, batch=4, kept=(2, 4), schedule=150, blocks=(8, 8), heads=4, groups=4
)


@pytest.fixture
def small(monkeypatch):
    """mnist5k under a tiny recipe, reported and stored every two steps."""
    monkeypatch.setitem(recipes.RECIPES, "mnist5k", RECIPE)
    monkeypatch.setattr(training, "REPORT_EVERY", 2)
    monkeypatch.setattr(train_diffusion, "STORE_EVERY", 2)
    monkeypatch.setattr(train_diffusion, "MEASURED_IMAGES", 40)


def trained(out: Path, steps=None, seed=0, **given) -> str:
    return train_diffusion.train_and_save(
        "mnist5k", out, seed=seed, steps=steps, device="cpu", **given
    )


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


def test_half_is_the_averaged_weights_rounded(small, tmp_path):
    trained(tmp_path / "whole", steps=5)
    trained(tmp_path / "half", steps=5, half=True)
    assert set(content(tmp_path / "half")) == {
        "diffusion_pytorch_model.safetensors",
        "bench.json",
        "config.json",
        "scheduler_config.json",
    }
    card = json.loads((tmp_path / "half/bench.json").read_text())
    assert card["steps"] == [5] and set(card["measured"]["noise_error"]) == {"ema"}
    ours = loaded(tmp_path / "half").network.state_dict()
    for name, value in loaded(tmp_path / "whole").network.state_dict().items():
        assert torch.equal(ours[name], value.half().float())


TOML = """
steps = 2
batch = 4
schedule = 150
times = 60
flips = true
shift = 2
blocks = [8, 8]
heads = 4
groups = 4
"""


def test_a_recipe_of_ones_own_goes_on_from_an_earlier_run(small, tmp_path):
    path, first, second = tmp_path / "own.toml", tmp_path / "first", tmp_path / "second"
    path.write_text(TOML)
    trained(first)
    trained(second, recipe_file=path, start=first)
    card = json.loads((second / "bench.json").read_text())
    main = "diffusion_pytorch_model.safetensors"
    assert card["start"] == json.loads((first / "bench.json").read_text())["sha256"][main]
    assert card["trained_on"] == ["mnist5k/train"] and card["trained_steps"] == 60
    assert set(card["measured"]["noise_error"]["ema"]) == {"20", "50"}
    assert loaded(second).trained_steps == 60
    # One step at a warming rate hardly moves what it began with; fresh weights lie elsewhere.
    ours, begun = (loaded(one).network.state_dict() for one in (second, first))
    assert max(float((ours[key] - begun[key]).abs().max()) for key in ours) < 1e-3
    path.write_text(TOML.replace("[8, 8]", "[8, 16]"))
    other = message(lambda: trained(tmp_path / "m", recipe_file=path, start=first))
    assert "another network" in other


def test_only_the_times_of_the_recipe_are_trained(monkeypatch):
    seen = []

    def loss(model, z, times, noise):
        seen.append(times)
        return sum(value.sum() for value in model.network.parameters())

    monkeypatch.setattr(training, "denoising_loss", loss)
    recipe = DiffusionRecipe(
        steps=40, batch=8, schedule=150, times=5, blocks=(8, 8), heads=4, groups=4
    )
    DiffusionRun(torch.zeros(9, 1, 8, 8), recipe, 0).advance()
    assert set(torch.cat(seen).tolist()) == {0, 1, 2, 3, 4}


def test_images_are_mirrored_and_shifted_by_hand():
    image = torch.arange(2 * 25.0).reshape(1, 2, 5, 5)
    images = image.repeat(200, 1, 1, 1)
    recipe = DiffusionRecipe(steps=1, flips=True, shift=1)
    made = augmented(images, recipe, Noise.of(0, Stream.BUILD, [0], 0, torch.device("cpu")))
    possible = set()
    for one in (image[0], image[0].flip(-1)):
        rows = [[1, 0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 3]]
        for down in rows:
            for right in rows:
                possible.add(tuple(one[:, down][:, :, right].flatten().tolist()))
    found = [tuple(one.flatten().tolist()) for one in made]
    assert set(found) == possible and len(possible) == 18
    counts = [found.count(one) for one in possible]
    assert max(counts) < 4 * 200 / 18


def test_narrow_passes_train_float32_weights():
    recipe = DiffusionRecipe(
        steps=30, batch=16, blocks=(8, 8), heads=4, groups=4, warmup=0, precision="bfloat16"
    )
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    run = DiffusionRun(images, recipe, 0)
    losses = [float(run._step()) for _ in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert {value.dtype for value in run.network.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("steps = 0", "greater than or equal to 1"),
        ("step = 3", "unexpected keyword"),
        ("times = 900", "past the schedule of 150"),
        ("shift = 28", "out of sight"),
        ("blocks = [8, 10]", "no multiple of groups"),
        ("blocks = [8, 12]\ngroups = 4\nheads = 8", "an attention head"),
        ("blocks = [8, 8, 8, 8]", "cannot be halved 3 times"),
        ("rate = inf", "finite number"),
        ("precision = 'float8'", "'float32' or 'bfloat16'"),
        ("steps = ", "cannot read the recipe"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path, line, told):
    keys = {part.split(" = ")[0] for part in line.split("\n")}
    kept = [part for part in TOML.splitlines() if part.split(" = ")[0] not in keys]
    path = tmp_path / "own.toml"
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(BadInput, match=told) as caught:
        read_recipe(path, (1, 28, 28))
    assert "\n" not in str(caught.value)
