"""Killed before any call that changes a file, and begun again: the same result, nothing left."""

import importlib
import json

import pytest
import torch

from bench.defense import Defense, NoParams
from bench.diffusion import recipe as recipes
from bench.diffusion.recipe import DiffusionRecipe
from bench.plugins.create import DEFENSES
from bench.storage import claims
from bench.storage.artifacts import artifact
from bench.storage.checkpoint import read_checkpoint, write_checkpoint
from bench.storage.files import write_whole
from tests.helpers import MODEL
from tests.killing import KILLED, in_child
from tests.models import helpers as toy_digits  # noqa: F401

TOY = ["--dataset", "toy:n=150", "--classifier", MODEL, "--batch-size", "64", "--device", "cpu"]
SUITE = f"""
defense = ["toy-jitter"]
attack = ["null", "pgd:steps=2"]
dataset = "toy:n=70"
classifier = "{MODEL}"
"""


SMALL = DiffusionRecipe(steps=1, batch=4, schedule=850, blocks=(8, 8), heads=4, groups=4)


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What commands import late, imported before each of their copies would."""
    for name in ("matplotlib.pyplot", "torch._dynamo", "bench.studies.theorem"):
        importlib.import_module(name)
    assert importlib.import_module("diffusers").UNet2DModel


@DEFENSES.register("toy-trained")
class Trained(Defense[NoParams]):
    """Scales the classifier by what a run of two stretches learnt."""

    Params = NoParams

    def build(self, classifier, access, noise):
        folder = artifact("toy-trained", {"version": 1}, _train)
        factor = float((folder / "factor").read_text())
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.mul_(factor)
        return classifier


def _train(work):
    checkpoint, done = work / "checkpoint", 0
    if checkpoint.exists():
        with read_checkpoint(checkpoint, torch.device("cpu")) as content:
            done = content["done"]
    for stretch in range(done, 2):
        write_checkpoint(checkpoint, {"done": stretch + 1})
    write_whole(work / "factor", b"2.0")
    checkpoint.unlink()


COMMANDS = {
    "run": ["run", "--defense", "toy-jitter", "--attack", "pgd:steps=2", *TOY],
    "suite": ["run", "--suite", "SUITE", "--batch-size", "64", "--device", "cpu"],
    "train": ["train", "toy-digits", "--epochs", "1", "--device", "cpu"],
    "train-diffusion": ["train-diffusion", "toy-digits", "--steps", "1", "--device", "cpu"],
    "study": ["study", "theorem:trials=100,dimensions=2,draws=1", "--seed", "1"],
    "trained defense": ["run", "--defense", "toy-trained", "--attack", "null", *TOY],
}


def prepared(which, folder):
    """The command that writes into a folder, with its cache there."""
    folder.mkdir()
    inside = {"train": "out/net.safetensors", "train-diffusion": "out/model"}
    out = folder / inside.get(which, "out")
    (folder / "out").mkdir()
    (folder / "suite.toml").write_text(SUITE)
    arguments = [
        str(folder / "suite.toml") if word == "SUITE" else word for word in COMMANDS[which]
    ]
    return [*arguments, "--out", str(out)]


def content(folder):
    """All files below a folder; of records what does not name a time."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name != "suite.toml":
            files[name] = path.read_bytes()
            if path.suffix == ".json" and b'"schema_version"' in files[name]:
                about = json.loads(files[name])
                about.pop("finished", None)
                about.pop("seconds", None)
                about.get("cost", {}).pop("seconds", None)
                files[name] = about
        elif path.is_dir() and path.name != ".work" and not path.name.startswith(".claim-"):
            files[name] = None
    return {name: data for name, data in files.items() if "/.claim-" not in name}


def check_kills(which, tmp_path, monkeypatch, points):
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.5)
    for module in ("engine.environment", "commands.train"):
        # Somebody may commit meanwhile.
        monkeypatch.setattr(f"bench.{module}.commit", lambda: ("0" * 40, False))
    monkeypatch.setitem(recipes.RECIPES, "toy-digits", SMALL)
    log = tmp_path / "log"
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "whole" / "cache"))
    code, calls = in_child(prepared(which, tmp_path / "whole"), log)
    print(f"{which}: {calls} calls")
    assert code == 0 and calls > 10
    expected = content(tmp_path / "whole")
    for k in points(calls):
        folder = tmp_path / f"killed-{k}"
        monkeypatch.setenv("BENCH_CACHE", str(folder / "cache"))
        arguments = prepared(which, folder)
        assert in_child(arguments, log, k)[0] == KILLED, k
        assert in_child(arguments, log)[0] == 0, k
        assert content(folder) == expected, k


def few(calls):
    return [calls // 2, calls - 1]


@pytest.mark.parametrize("which", COMMANDS)
def test_some_kills(which, tmp_path, monkeypatch):
    check_kills(which, tmp_path, monkeypatch, few)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("which", COMMANDS)
def test_all_kills(which, tmp_path, monkeypatch):
    check_kills(which, tmp_path, monkeypatch, lambda calls: range(1, calls + 1))
