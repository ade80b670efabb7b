"""What `autoattack` costs beside the library that it wraps: the same points, in one process.

    BENCH_REAL_DATA=/path/with/data/and/models \
        python benchmarks/autoattack_wrapper.py [--n 100] [--repeats 2] [NET ...]

The library's own harness runs on the plain network with frozen weights, which is the faster way, on
the same images in one batch under the same seed. The two take turns. Time is CPU time of this
process, which another process on the machine disturbs least; a ratio below 1.02 is what is meant to
hold on a machine that does nothing else. Points are compared bit by bit.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_attacks.autoattack import AutoAttack
from pyautoattack import AutoAttack as Library
from torch import Tensor

from bench.data.npz import Npz
from bench.models.classifier import Classifier
from bench.models.file import File
from bench.noise import isolated, seed_of
from bench.threat import ThreatModel
from bench.victim import Victim, frozen

NETS = {
    "cifar_resnet20": ("cifar10_exact", 3, 0.5 / 255),
    "mnist_kw_0.1": ("mnist", 1, 0.1),
}
"""By file of the weights: packed images, their channels, eps."""


def load(net: str, n: int) -> tuple[Classifier, Tensor, Tensor, ThreatModel]:
    data, channels, eps = NETS[net]
    folder = Path(os.environ["BENCH_REAL_DATA"])
    images = Npz(Npz.Params(path=str(folder / f"data/{data}.npz"))).test().first(n)
    weights = File.Params(path=str(folder / f"models/{net}.safetensors"))
    return (
        File(weights).load(10, channels),
        images.pixels(),
        images.labels,
        ThreatModel("linf", eps),
    )


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    began = time.process_time()
    return run(), time.process_time() - began


def compare(net: str, n: int, repeats: int) -> None:
    classifier, images, labels, threat = load(net, n)

    def plain(x: Tensor) -> Tensor:
        logits: Tensor = classifier.network((x - classifier.mean) / classifier.std)
        return logits

    def ours() -> Tensor:
        victim = Victim(classifier, np.arange(n))
        return AutoAttack(chunk=n)(victim, images, labels, threat).points

    def library() -> Tensor:
        row = torch.zeros(1, dtype=torch.int64)
        seed = seed_of(Victim(classifier, np.arange(n)).random(row), "library")
        with isolated(0):
            suite = Library(plain, norm="Linf", eps=threat.eps, seed=seed, device="cpu")
            points, _ = suite.run_standard_evaluation(images, labels, batch_size=n)
        return points

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    with frozen(classifier):
        for _ in range(repeats):
            (points, own), (others, its) = timed(ours), timed(library)
            same = "the same points" if torch.equal(points, others) else "OTHER POINTS"
            print(f"{net}, {n} images: {own:.1f} s, library {its:.1f} s, {own / its:.3f}, {same}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("nets", nargs="*", default=list(NETS), metavar="NET")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for net in asked.nets:
        compare(net, asked.n, asked.repeats)


if __name__ == "__main__":
    main()
