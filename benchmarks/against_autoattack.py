"""`ensemble` against the library's AutoAttack: the same net, images and thread, in one run.

    BENCH_REAL_DATA=/path/with/data/and/models \
        python benchmarks/against_autoattack.py --out against_autoattack.json [NET ...]

The library runs on the plain network with its weights frozen, which is the faster way. Times are
CPU time of this process, which another process on the machine disturbs least, and wall time. What
is in the file already is not run again; the table is printed from the file:

    python benchmarks/against_autoattack.py --out against_autoattack.json --table
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_attacks.ensemble import Ensemble
from pyautoattack import AutoAttack
from torch import Tensor, nn

from bench import load_classifier, load_dataset
from bench.defense import DefendedClassifier
from bench.engine.build import build
from bench.engine.plan import plan
from bench.engine.request import read_request
from bench.noise import Noise, Stream, isolated
from bench.threat import ThreatModel
from bench.victim import Victim, frozen

BATCH = 128
PROFILES = ("fast", "standard")
PIXEL = 1 / 255


@dataclass(frozen=True)
class Net:
    """A row: weights, images, radius, and how many images the library is given.

    Attributes:
        images: name of the packed data set, or `mnist5k`.
        source: file of the weights, or a defense's spec on `mnist5k`.
        half: whether the schedule was chosen on it, or it was only reported.
    """

    images: str
    source: str
    eps: float
    half: str
    n: int = 200


NETS = {
    "mnist_kw_0.1": Net("mnist", "mnist_kw_0.1", 0.1, "chosen"),
    "mnist_cnn_a_adv": Net("mnist", "mnist_cnn_a_adv", 0.3, "chosen"),
    "cifar_kw_wide": Net("cifar10_exact", "cifar_kw_wide", 2 * PIXEL, "chosen"),
    "resnet20 0.5/255": Net("cifar10_exact", "cifar_resnet20", 0.5 * PIXEL, "chosen", 24),
    "mnist_kw_small_0.3": Net("mnist", "mnist_kw_small_0.3", 0.3, "reported"),
    "cifar_kw_base": Net("cifar10_exact", "cifar_kw_base", 2 * PIXEL, "reported"),
    "cifar_cnn_a_adv": Net("cifar10_exact", "cifar_cnn_a_adv", 2 * PIXEL, "reported"),
    "resnet20 8/255": Net("cifar10_exact", "cifar_resnet20", 8 * PIXEL, "reported"),
    "datafreeshield": Net("mnist5k", "datafreeshield:scale=quick", 0.1, "reported", 40),
}


class Plain(nn.Module):
    """A defended classifier as the library wants it, which counts its passes by images."""

    def __init__(self, classifier: DefendedClassifier) -> None:
        super().__init__()
        self.classifier, self.forwards, self.backwards = classifier, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        noise = Noise.of(0, Stream.FIXED, range(len(images)))
        logits = self.classifier(images, noise)
        self.forwards += len(images)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, slope: Tensor) -> None:
        self.backwards += len(slope)


def load(net: Net) -> tuple[DefendedClassifier, Tensor, Tensor]:
    """The network, and the first images with their labels."""
    if net.images == "mnist5k":
        request = {"defenses": [net.source], "attacks": ["null"], "dataset": "mnist5k"}
        (row,) = [e for e in plan(read_request(request, "evaluate")) if e.base()]
        images = row.setup.images.first(net.n)
        return build(row, torch.device("cpu")), images.pixels(), images.labels
    folder = Path(os.environ["BENCH_REAL_DATA"])
    dataset = f"npz:{folder}/data/{net.images}.npz"
    images = load_dataset(dataset).test().first(net.n)
    classifier = load_classifier(f"file:{folder}/models/{net.source}.safetensors", dataset)
    return classifier, images.pixels(), images.labels


def timed(attack: Callable[[], tuple[Tensor, float]]) -> dict[str, Any]:
    """Which images are left, passes an image, and seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    left, passes = attack()
    return {
        "left": left.nonzero().flatten().tolist(),
        "passes": round(passes, 1),
        "cpu": round(time.process_time() - cpu, 1),
        "wall": round(time.perf_counter() - wall, 1),
    }


def library(
    classifier: DefendedClassifier, images: Tensor, labels: Tensor, eps: float
) -> tuple[Tensor, float]:
    """AutoAttack, version standard, by pyautoattack."""
    model = Plain(classifier)
    with isolated(0):
        suite = AutoAttack(model, norm="Linf", eps=eps, seed=0, version="standard", device="cpu")
        points = suite.run_standard_evaluation(images, labels, batch_size=BATCH)[0]
    passes = (model.forwards + model.backwards) / len(images)
    return judged(classifier, points, images, labels, eps), passes


def ensemble(
    profile: str, classifier: DefendedClassifier, images: Tensor, labels: Tensor, eps: float
) -> tuple[Tensor, float]:
    """One profile of our own suite."""
    victim = Victim(classifier, np.arange(len(images)), batch_size=BATCH)
    points = Ensemble(profile=profile)(victim, images, labels, ThreatModel("linf", eps)).points
    passes = (victim.forwards + victim.backwards).float().mean().item()
    return judged(classifier, points, images, labels, eps), passes


def judged(
    classifier: DefendedClassifier, points: Tensor, images: Tensor, labels: Tensor, eps: float
) -> Tensor:
    """Which images are still right at their points, which must lie in ball and box; bool (n,)."""
    assert (points - images).abs().max() <= eps + 1e-6 and 0 <= points.min() <= points.max() <= 1
    with torch.no_grad():
        logits = Plain(classifier)(points)
    right: Tensor = logits.argmax(1) == labels
    return right


def run(name: str, net: Net, known: dict[str, Any]) -> dict[str, Any]:
    """A net's row: what is known of it already is kept."""
    classifier, images, labels = load(net)
    with frozen(classifier):
        with torch.no_grad():
            clean = Plain(classifier)(images).argmax(1) == labels
        row = {"eps": net.eps, "n": net.n, "clean": int(clean.sum()), "half": net.half, **known}
        arguments = (classifier, images, labels, net.eps)
        for profile in PROFILES:
            if profile not in row:
                row[profile] = timed(lambda p=profile: ensemble(p, *arguments))
                print(name, profile, len(row[profile]["left"]), row[profile], flush=True)
        if "library" not in row:
            row["library"] = timed(lambda: library(*arguments))
            print(name, "library", len(row["library"]["left"]), row["library"], flush=True)
    return row


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Images left, passes an image and seconds of CPU: the library's, then each profile's."""
    lines = [
        "| net | schedule | images | clean | left | passes an image | CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in [name for name in NETS if name in rows]:
        row = rows[name]
        runs = [row[run] for run in ("library", *PROFILES)]
        cells = [
            " / ".join(str(len(run["left"])) for run in runs),
            " / ".join(f"{run['passes']:,.0f}" for run in runs),
            " / ".join(f"{run['cpu']:.0f}" for run in runs),
        ]
        lines.append(f"| {name} | {row['half']} | {row['n']} | {row['clean']} | ")
        lines[-1] += " | ".join(cells) + " |"
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("nets", nargs="*", metavar="NET", help=f"of {', '.join(NETS)}")
    parser.add_argument("--out", type=Path, required=True, help="file of the results, JSON")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in [] if given.table else given.nets or NETS:
        rows[name] = run(name, NETS[name], rows.get(name, {}))
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
