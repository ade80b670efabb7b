"""Networks, weights files and trainings of few images."""

import hashlib
import json
import zipfile
from dataclasses import replace

import safetensors.torch
import torch

from bench.data.mnist5k import Mnist5k
from bench.models.file import File, FileParams
from bench.models.nets import build
from bench.models.recipes import recipe_for
from bench.models.training import TrainingRun
from bench.noise import Noise
from bench.plugins.create import DATASETS
from bench.spec import Params

LAYERS = [["conv", 1, 2, 4, 2, 1], ["relu"], ["flat"], ["lin", 32, 5], ["relu"], ["lin", 5, 3]]


def noise(n=2):
    return Noise.of(0, "eval", range(n))


def count(network):
    return sum(p.numel() for p in network.parameters())


def write(tmp_path, name="net.safetensors", sidecar=None, arch="cnn", classes=10, channels=1):
    """A weights file of a fresh network; returns its path and state."""
    state = build(arch, classes, channels, seed=5).state_dict()
    path = tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    if sidecar is not None:
        (tmp_path / f"{name}.json").write_text(json.dumps(sidecar))
    return str(path), state


def load(path, classes=10, channels=1, **params):
    return File(FileParams(path=path, **params)).load(classes, channels)


MNIST5K = recipe_for("mnist5k", "cnn", (1, 28, 28))


class Few(Mnist5k):
    """The first 130 training images; its test images must not be touched."""

    def train(self):
        return super().train().first(130)

    def test(self):
        raise AssertionError("training looked at test images")


class Split(Few):
    """With a validation split of 100 images."""

    def validation(self):
        return Mnist5k.train(self).at(torch.arange(200, 300).numpy())


@DATASETS.register("toy-digits")
class Digits(Split):
    """With few test images."""

    def test(self):
        return Mnist5k.test(self).first(50)


def fit(dataset=Few, arch="cnn", epochs=1, recipe=MNIST5K, checkpoint=None, **options):
    progress = options.pop("progress", None)
    run = TrainingRun(
        dataset(Params()),
        arch,
        replace(recipe, epochs=epochs),
        trained_on="mnist5k/train",
        **options,
    )
    run.finish(checkpoint, progress)
    return run.trained()


class Killed(Exception):
    pass


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def zipped(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return folder / f"{name}.zip"


def sha(algorithm, content):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
