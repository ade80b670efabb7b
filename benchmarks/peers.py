"""The same attacks by other libraries, and by plain loops; all on the classifier without noise."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.data.npz import Npz
from bench.engine.evaluation import Evaluation
from bench.engine.execution import read_execution
from bench.engine.plan import plan
from bench.engine.request import read_request
from bench.execution.local import read_team, run_in_processes
from bench.models.classifier import Classifier
from bench.models.file import File
from bench.noise import Noise, Stream, isolated
from bench.results.store import Store
from benchmarks.measure import Absent, Run

BATCH = 128
CHANNELS = {"mnist": 1}


def library(name: str) -> Any:
    """A module, or `Absent`."""
    try:
        return import_module(name)
    except ImportError:
        raise Absent(f"{name} is not installed") from None


def data_folder() -> Path:
    folder = os.environ.get("BENCH_REAL_DATA")
    if not folder:
        raise Absent("BENCH_REAL_DATA is not set: it names a folder with data/ and models/")
    return Path(folder)


class Plain(nn.Module):
    """The classifier as other libraries want it: images to logits, its weights frozen."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.network
        self.register_buffer("mean", classifier.mean)
        self.register_buffer("std", classifier.std)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Problem:
    """Images of a packed data set, a classifier of a weights file, and a radius in Linf."""

    data: str
    net: str
    eps: float
    n: int
    device: str = "cpu"

    def load(self) -> tuple[Classifier, Tensor, Tensor]:
        folder = data_folder()
        images = Npz(Npz.Params(path=str(folder / f"data/{self.data}.npz"))).test().first(self.n)
        weights = File.Params(path=str(folder / f"models/{self.net}.safetensors"))
        classifier = File(weights).load(10, CHANNELS.get(self.data, 3)).to(self.device)
        return classifier, images.pixels().to(self.device), images.labels.to(self.device)

    def options(self, attack: str, defense: str = "undefended") -> dict[str, Any]:
        """The options of `bench run` for it."""
        folder = data_folder()
        return {
            "dataset": f"npz:path={folder}/data/{self.data}.npz",
            "classifier": f"file:path={folder}/models/{self.net}.safetensors",
            "norm": "linf",
            "eps": str(self.eps),
            "n": self.n,
            "defense": defense,
            "attack": attack,
        }

    def ours(
        self,
        attack: str,
        defense: str = "undefended",
        *,
        workers: int | None = 1,
        compile: str = "auto",
        **more: Any,
    ) -> Run:
        """A whole evaluation: attack, judge, checks and record; in this process, or with `workers`,
        None as many as a command takes by itself. `compile` as on the command line.
        """
        request = read_request({**self.options(attack, defense), **more}, "benchmark")
        evaluations = plan(request)[-1:]
        return lambda: evaluated(evaluations, self.device, workers, compile)

    def theirs(self, attack: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Run:
        """Points of another attack in batches, and how many images they leave right."""
        classifier, images, labels = self.load()
        model = Plain(classifier)

        def run() -> str:
            right = 0
            for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
                points = attack(model, x, y)
                with torch.no_grad():
                    right += int((model(points).argmax(1) == y).sum())
            return robust(right / len(images))

        return run


def evaluated(
    evaluations: list[Evaluation],
    device: str = "cpu",
    workers: int | None = 1,
    compile: str = "auto",
) -> str:
    """Run into a folder that goes; the robust accuracy of the last one."""
    import tempfile

    execution = read_execution(device, BATCH, compile=compile)
    team = read_team(workers, execution.device)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        result = list(run_in_processes(evaluations, None, store, execution, team, print))[-1]
    if result.record is None:
        raise RuntimeError(str(result.failure or result.rejected))
    return robust(result.record.metrics.adversarial.mean.value)


def robust(share: float) -> str:
    return f"{100 * share:.1f} % robust"


def foolbox_pgd(eps: float, steps: int, restarts: int = 1) -> Any:
    foolbox = library("foolbox")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=steps, random_start=True)
    if restarts > 1:
        attack = attack.repeat(restarts)

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        with isolated(0):
            points: Tensor = attack(wrapped, x, y, epsilons=eps)[1]
        return points

    return run


def torchattacks_pgd(eps: float, steps: int, kind: str = "PGD", **more: Any) -> Any:
    torchattacks = library("torchattacks")

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = getattr(torchattacks, kind)(model, eps=eps, alpha=eps / 4, steps=steps, **more)
        with isolated(0):
            points: Tensor = attack(x, y)
        return points

    return run


def plain_pgd(eps: float, steps: int) -> Any:
    """A loop as one writes it by hand."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        start = Noise.of(0, Stream.ATTACK, range(len(x)), device=x.device)
        points = (x + eps * (2 * start.uniform("start", tuple(x.shape[1:])) - 1)).clamp(0, 1)
        for _ in range(steps):
            points.requires_grad_(True)
            loss = nn.functional.cross_entropy(model(points), y, reduction="sum")
            (slope,) = torch.autograd.grad(loss, points)
            points = points.detach() + eps / 4 * slope.sign()
            points = torch.minimum(torch.maximum(points, x - eps), x + eps).clamp(0, 1)
        return points.detach()

    return run


def autoattack(eps: float, *attacks: str) -> Any:
    """The authors' suite, or some attacks of it."""
    suite = library("pyautoattack").AutoAttack
    logging.getLogger("auto-attack").setLevel(logging.ERROR)

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        chosen = {"version": "custom", "attacks": list(attacks)} if attacks else {}
        with isolated(0):
            harness = suite(model, norm="Linf", eps=eps, seed=0, device=str(x.device), **chosen)
            harness.apgd.n_restarts = 1 if attacks else 5
            points: Tensor = harness.run_standard_evaluation(x, y, batch_size=len(x))[0]
        return points

    return run
