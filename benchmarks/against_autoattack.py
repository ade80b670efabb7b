"""`ensemble` against the library's AutoAttack: the same net, images and thread, in one run.

    BENCH_REAL_DATA=/path/with/data/and/models \
        python benchmarks/against_autoattack.py --out against_autoattack.json [NET ...]

The library runs on the plain network with its weights frozen, which is the faster way. Both
profiles run before and after it, so that a machine whose speed wavers treats them alike. Times are
CPU time of this process, which another process on the machine disturbs least, and wall time. A net
that is in the file already is not run again; the table is printed from the file:

    python benchmarks/against_autoattack.py --out against_autoattack.json --table
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from bench_attacks.ensemble import Ensemble
from bench_attacks.ensemble.schedule import Profile
from pyautoattack import AutoAttack
from torch import Tensor, nn

from bench import load_classifier, load_dataset
from bench.defense import DefendedClassifier
from bench.engine.build import build
from bench.engine.plan import plan
from bench.engine.request import read_request
from bench.models.folding import Folding, find_pairs
from bench.noise import Noise, Stream, isolated
from bench.threat import ThreatModel
from bench.victim import Victim, frozen

BATCH = 128
PROFILES: tuple[Profile, ...] = ("fast", "standard")
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
    "mnist_kw_small_0.3": Net("mnist", "mnist_kw_small_0.3", 0.3, "chosen"),
    "cifar_kw_base": Net("cifar10_exact", "cifar_kw_base", 2 * PIXEL, "reported"),
    "cifar_cnn_a_adv": Net("cifar10_exact", "cifar_cnn_a_adv", 2 * PIXEL, "reported"),
    "resnet20 8/255": Net("cifar10_exact", "cifar_resnet20", 8 * PIXEL, "reported"),
    "datafreeshield": Net("mnist5k", "datafreeshield:scale=quick", 0.1, "reported"),
    "ait": Net("mnist5k", "ait:scale=quick", 0.1, "reported"),
    "dfard": Net("mnist5k", "dfard:scale=quick", 0.1, "reported"),
}


class Plain(nn.Module):
    """A defended classifier as the library wants it, which counts its passes by images."""

    def __init__(self, classifier: DefendedClassifier) -> None:
        super().__init__()
        self.classifier, self.forwards, self.backwards = classifier, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        noise = Noise.of(0, Stream.FIXED, range(len(images)))
        logits: Tensor = self.classifier(images, noise)
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


@dataclass
class Run:
    """Which images are left, all passes, and the seconds of each time that it ran."""

    left: list[int] = field(default_factory=list)
    passes: float = 0.0
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def add(self, attack: Callable[[], tuple[Tensor, float]]) -> None:
        """Time an attack, which leaves the same images each time."""
        wall, cpu = time.perf_counter(), time.process_time()
        left, self.passes = attack()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        again = left.nonzero().flatten().tolist()
        assert len(self.cpu) == 1 or again == self.left
        self.left = again

    def told(self, n: int) -> dict[str, Any]:
        return {
            "left": self.left,
            "passes": round(self.passes / n, 1),
            "cpu": round(mean(self.cpu), 2),
            "wall": round(mean(self.wall), 2),
        }


@dataclass(frozen=True)
class Case:
    """A classifier and images, which have ids, that are attacked."""

    classifier: DefendedClassifier
    ids: npt.NDArray[np.int64]
    images: Tensor
    labels: Tensor
    eps: float


def library(case: Case) -> tuple[Tensor, float]:
    """AutoAttack, version standard, by pyautoattack: which images are left, bool (n,), and passes,
    forward and backward, of all of them together.
    """
    model = Plain(case.classifier)
    with isolated(0):
        suite = AutoAttack(
            model, norm="Linf", eps=case.eps, seed=0, version="standard", device="cpu"
        )
        points = suite.run_standard_evaluation(case.images, case.labels, batch_size=BATCH)[0]
    return judged(case, points), float(model.forwards + model.backwards)


def ensemble(profile: Profile, case: Case) -> tuple[Tensor, float]:
    """One profile of our own suite; returns as `library` does."""
    model = case.classifier
    noise = Noise.of(0, Stream.FIXED, case.ids[:1])
    # As `--compile auto` does: searches read folded passes, successes are confirmed.
    pairs = find_pairs(model, lambda: model(case.images[:1], noise))
    victim = Victim(model, case.ids, batch_size=BATCH, fold=Folding(model, pairs))
    threat = ThreatModel("linf", case.eps)
    points = Ensemble(profile=profile)(victim, case.images, case.labels, threat).points
    return judged(case, points), (victim.forwards + victim.backwards).sum().item()


def judged(case: Case, points: Tensor) -> Tensor:
    """Which images are still right at their points, which must lie in ball and box; bool (n,)."""
    assert (points - case.images).abs().max() <= case.eps + 1e-6
    assert 0 <= points.min() <= points.max() <= 1
    with torch.no_grad():
        logits = Plain(case.classifier)(points)
    right: Tensor = logits.argmax(1) == case.labels
    return right


def run(name: str, net: Net) -> dict[str, Any]:
    """A net's row."""
    classifier, images, labels = load(net)
    case = Case(classifier, np.arange(len(images)), images, labels, net.eps)
    attacks: dict[str, Callable[[Case], tuple[Tensor, float]]] = {
        **{profile: partial(ensemble, profile) for profile in PROFILES},
        "library": library,
    }
    runs = {attack: Run() for attack in attacks}
    with frozen(classifier):
        clean = int(judged(case, images).sum())
        # Ours before and after the library's, so that what else the machine does meets both.
        for attack in (*PROFILES, "library", *PROFILES):
            runs[attack].add(partial(attacks[attack], case))
            print(name, attack, vars(runs[attack]), flush=True)
    told = {attack: found.told(len(images)) for attack, found in runs.items()}
    return {"eps": net.eps, "n": net.n, "clean": clean, "half": net.half, **told}


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
            " / ".join(f"{run['cpu']:.3g}" for run in runs),
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
    wanted = [] if given.table else given.nets or list(NETS)
    for name in [name for name in wanted if name not in rows]:
        rows[name] = run(name, NETS[name])
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
