"""PGD against foolbox and torchattacks on the same nets, images, steps and threads, in one run.

    pip install foolbox; pip install --no-deps torchattacks      # whose pins would downgrade
    requests BENCH_REAL_DATA=/path/with/data/and/models pytest benchmarks --benchmark-group-by=group

The table's parentheses are the ratios to the fastest of a group. The undefended ResNet-20 shows
what retiring broken images is worth; on the adversarially trained net most images survive, so every
step counts.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_attacks.pgd import PGD, PGDParams
from torch import nn

from bench.data.npz import Npz
from bench.models.file import File
from bench.threat import ThreatModel
from bench.victim import Victim, frozen

IMAGES, STEPS, BATCH = 256, 20, 128
NETS = {"cifar_resnet20": 8 / 255, "cifar_cnn_a_adv": 2 / 255}


def load(net: str):
    folder = os.environ.get("BENCH_REAL_DATA")
    if not folder:
        pytest.skip("BENCH_REAL_DATA is not set: it names a folder with data/ and models/")
    images = Npz(Npz.Params(path=str(Path(folder) / "data/cifar10_exact.npz"))).test().first(IMAGES)
    classifier = File(File.Params(path=str(Path(folder) / f"models/{net}.safetensors"))).load(10, 3)
    return classifier, images.pixels(), images.labels


class Plain(nn.Module):
    """The classifier as the other libraries want it: images to logits."""

    def __init__(self, classifier) -> None:
        super().__init__()
        self.network = classifier.network
        self.register_buffer("mean", classifier.mean)
        self.register_buffer("std", classifier.std)

    def forward(self, images):
        return self.network((images - self.mean) / self.std)


def ours(classifier, images, labels, eps):
    attack = PGD(PGDParams(steps=STEPS, step="eps/4"))

    def run():
        with frozen(classifier):
            victim = Victim(classifier, np.arange(len(images)), batch_size=BATCH)
            return attack(victim, images, labels, ThreatModel("linf", eps)).points

    return run


def with_foolbox(classifier, images, labels, eps):
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(Plain(classifier).eval(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=STEPS, random_start=True)

    def run():
        parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        return torch.cat([attack(model, x, y, epsilons=eps)[1] for x, y in parts])

    return run


def with_torchattacks(classifier, images, labels, eps):
    torchattacks = pytest.importorskip("torchattacks")
    attack = torchattacks.PGD(
        Plain(classifier).eval(), eps=eps, alpha=eps / 4, steps=STEPS, random_start=True
    )

    def run():
        parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        return torch.cat([attack(x, y) for x, y in parts])

    return run


@pytest.mark.parametrize(
    "library", [ours, with_foolbox, with_torchattacks], ids=["bench", "foolbox", "torchattacks"]
)
@pytest.mark.parametrize("net", NETS)
def test_pgd(benchmark, net, library):
    classifier, images, labels = load(net)
    eps = NETS[net]
    benchmark.group = f"PGD-{STEPS} on {net}, {IMAGES} images, eps {round(eps * 255)}/255"
    points = benchmark.pedantic(library(classifier, images, labels, eps), rounds=5, warmup_rounds=1)
    with torch.no_grad():
        robust = (Plain(classifier)(points).argmax(1) == labels).float().mean()
    benchmark.extra_info["robust accuracy"] = float(robust)
    print(f"\n{net} {library.__name__}: robust accuracy {robust:.4f}")
