"""The rows of the table; see `python -m benchmarks --help`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.diffusion.chain import Sampler, indices, links, noised, run
from bench.diffusion.load import load_model
from bench.engine.build import build
from bench.engine.plan import plan
from bench.engine.request import read_request
from bench.noise import Noise, Stream
from bench.victim import frozen
from benchmarks import peers
from benchmarks.measure import OURS, Absent, Row, Run, with_threads

PIXEL = 1 / 255
TORCHATTACKS, FOOLBOX, LOOP = "torchattacks", "foolbox", "plain loop"
PEAK = Path(__file__).with_name("peak.py")

Size = Callable[[int], int]
"""How many images a row takes that has so many at full scale."""


def pgd(problem: peers.Problem, steps: int, compile: str = "auto") -> Mapping[str, Run]:
    """Ours with the workers that it takes by itself, one thread each; the others with two
    threads.
    """
    eps = problem.eps
    ours = problem.ours(f"pgd:steps={steps},step=eps/4", workers=None, compile=compile)
    return {
        OURS: with_threads(1, ours),
        TORCHATTACKS: with_threads(2, problem.theirs(peers.torchattacks_pgd(eps, steps))),
        FOOLBOX: with_threads(2, problem.theirs(peers.foolbox_pgd(eps, steps))),
    }


def against_loop(problem: peers.Problem, steps: int, compile: str = "auto") -> Mapping[str, Run]:
    ours = problem.ours(f"pgd:steps={steps},step=eps/4", compile=compile)
    return {
        OURS: with_threads(1, ours),
        LOOP: with_threads(1, problem.theirs(peers.plain_pgd(problem.eps, steps))),
    }


def _whole_command(problem: peers.Problem, steps: int, compile: str) -> Mapping[str, Run]:
    """The command as it is typed, with its default workers, start-up and all."""
    eps = problem.eps
    options = {**problem.options(f"pgd:steps={steps},step=eps/4"), "compile": compile}
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return {
        OURS: partial(_command, arguments),
        TORCHATTACKS: with_threads(2, problem.theirs(peers.torchattacks_pgd(eps, steps))),
        FOOLBOX: with_threads(2, problem.theirs(peers.foolbox_pgd(eps, steps))),
    }


def _workers(numbers: Sequence[int], *arguments: str) -> Mapping[str, Run]:
    """One worker is the peer of several."""
    sides = {
        _crew(number): partial(_command, [*arguments, "--workers", str(number)])
        for number in numbers
    }
    return {OURS if name == "2 workers" else name: run for name, run in sides.items()}


def _crew(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _command(arguments: Sequence[str], threads: int = 1) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _shell([sys.executable, "-m", "bench", "run", *arguments, "--out", folder], threads)


def _shell(command: Sequence[str], threads: int = 1) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    # An installed package has its bytecode.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
    return done.stdout


def _apgd(problem: peers.Problem) -> Mapping[str, Run]:
    return {
        OURS: with_threads(1, problem.ours(f"apgd-ce:chunk={problem.n}")),
        "pyautoattack": with_threads(1, problem.theirs(peers.autoattack(problem.eps, "apgd-ce"))),
    }


def _autoattack(problem: peers.Problem, attack: str) -> Mapping[str, Run]:
    return {
        OURS: with_threads(1, problem.ours(attack)),
        "pyautoattack": with_threads(1, problem.theirs(peers.autoattack(problem.eps))),
    }


class _Drawing(nn.Module):
    """A random defense as other libraries ask it: new draws at each call."""

    def __init__(self, defended: nn.Module) -> None:
        super().__init__()
        self.defended, self.calls = defended.eval().requires_grad_(False), 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        noise = Noise.of(0, Stream.ATTACK, range(len(images)), self.calls, images.device)
        logits: Tensor = self.defended(images, noise)
        return logits


def eot(problem: peers.Problem, steps: int, k: int) -> Mapping[str, Run]:
    attack = f"pgd:steps={steps},step=eps/4"
    ours = problem.ours(attack, "random-resize", randomness=f"eot:k={k}")
    request = read_request(problem.options(attack, "random-resize"), "benchmark")
    defended = build(plan(request)[-1], torch.device(problem.device))
    theirs = peers.torchattacks_pgd(problem.eps, steps, "EOTPGD", eot_iter=k)
    peer = problem.theirs(lambda _, x, y: theirs(_Drawing(defended), x, y))
    return {OURS: with_threads(1, ours), TORCHATTACKS: with_threads(1, peer)}


def purification(rows: int, steps: int, device: str = "cpu") -> Mapping[str, Run]:
    """The gradient of a purified answer, beside that of the chain and the classifier alone."""
    spec = f"diffpure:steps={steps}" if steps else "diffpure"
    options = {"defense": spec, "attack": "null", "n": rows, "dataset": "mnist5k"}
    row = plan(read_request(options, "benchmark"))[-1]
    where = torch.device(device)
    defended = build(row, where)
    images = row.setup.images.pixels().to(where)
    noise = Noise.of(0, Stream.FIXED, range(len(images)), device=where)
    one = defended.how.rounds[0]
    model, network = load_model("zoo:mnist5k-ddpm").to(where), defended.classifier

    def bare(pixels: Tensor) -> Tensor:
        z = noised(model, 2 * pixels - 1, one.level, noise) if one.level is not None else pixels
        chain = links(model, indices(one.t, one.steps), Sampler(), noise)
        logits: Tensor = network((run(chain, z, z) + 1) / 2, noise)
        return logits

    def slope_of(answer) -> None:
        leaf = images.clone().requires_grad_(True)
        with frozen(defended), frozen(model):
            torch.autograd.grad(answer(leaf).square().sum(), leaf)

    forward = defended.forward_pass("full")
    return {
        OURS: with_threads(1, lambda: slope_of(lambda leaf: forward(leaf, noise))),
        "bare chain": with_threads(1, lambda: slope_of(bare)),
    }


def _datafree(what: str) -> Mapping[str, Run]:
    """DataFreeShield beside a transcription of its released code; a quarter of its batch."""
    peers.library("pytest")
    from benchmarks import test_datafree as code

    code.BATCH = 50
    ours, released = {
        "epoch": (code.our_training, code.released_training),
        "synthesis": (code.our_synthesis, code.released_synthesis),
    }[what]
    return {
        OURS: with_threads(1, lambda: ours() is None and None),
        "as released": with_threads(1, lambda: released() is None and None),
    }


def _start(*command: str) -> Mapping[str, Run]:
    alone = [sys.executable, "-c", "import torch"]
    return {
        OURS: lambda: _shell([sys.executable, *command]) and None,
        "import torch": lambda: _shell(alone) and None,
    }


def _memory(images: int, device: str = "cpu") -> Mapping[str, Run]:
    """Peak memory in MiB of PGD-10 at 224 x 224, each in a process of its own."""
    peers.data_folder()
    for name in ("timm", "foolbox"):
        peers.library(name)

    def peak(side: str) -> str:
        return _shell([sys.executable, str(PEAK), side, str(images), device])

    return {OURS: lambda: peak("bench"), FOOLBOX: lambda: peak("foolbox")}


def _first_command() -> Mapping[str, Run]:
    alone = _start("-c", "pass")["import torch"]
    asked = ["--defense", "undefended", "--attack", "ensemble:fast"]
    return {OURS: partial(_command, asked), "import torch": alone}


def table(tiny: bool = False) -> list[Row]:
    """All rows; `tiny` ones only show that they run."""

    def size(n: int) -> int:
        return max(2, n // 32) if tiny else n

    return [*_ascents(size, tiny), *_suites(size), *_own_images(size), *_processes(size, tiny)]


def _ascents(size: Size, tiny: bool) -> list[Row]:
    """PGD, each row as it comes and with gradients in bfloat16."""
    resnet, trained = _resnet(), partial(peers.Problem, "cifar10_exact", "cifar_cnn_a_adv")
    steps = 2 if tiny else 100
    return [
        *_both(
            "pgd-resnet",
            f"PGD-20, undefended ResNet-20, 8/255, {size(1017)} images: all workers",
            lambda compile: pgd(resnet(8 * PIXEL, size(1017)), 20, compile),
            {TORCHATTACKS: 12.0},
        ),
        *_both(
            "pgd-loop",
            f"PGD-20, ResNet-20, 0.5/255, {size(512)} images: few break early",
            lambda compile: against_loop(resnet(0.5 * PIXEL, size(512)), 20, compile),
            {LOOP: 2.2},
        ),
        *_both(
            "pgd-command",
            f"PGD-{steps}, cnn_a_adv, 2/255, {size(1017)} images: the whole command",
            lambda compile: _whole_command(trained(2 * PIXEL, size(1017)), steps, compile),
            {TORCHATTACKS: 2.0, FOOLBOX: 2.0},
        ),
    ]


def _both(
    key: str, text: str, sides: Callable[[str], Mapping[str, Run]], wanted: Mapping[str, float]
) -> list[Row]:
    """A row as it comes, and one with `--compile on`."""
    return [
        Row(key, text, partial(sides, "auto"), wanted, rounds=3),
        Row(f"{key}-on", f"{text}, `--compile on`", partial(sides, "on"), wanted, rounds=3),
    ]


def _resnet() -> Callable[[float, int], peers.Problem]:
    return partial(peers.Problem, "cifar10_exact", "cifar_resnet20")


def _suites(size: Size) -> list[Row]:
    """Suites of attacks beside the library's, and attacks on randomness."""
    resnet, trained = _resnet(), partial(peers.Problem, "cifar10_exact", "cifar_cnn_a_adv")
    return [
        Row(
            "apgd",
            f"APGD-CE, cnn_a_adv, 2/255, {size(64)} images",
            lambda: _apgd(trained(2 * PIXEL, size(64))),
        ),
        Row(
            "autoattack",
            f"AutoAttack, cnn_a_adv, 2/255, {size(32)} images",
            lambda: _autoattack(trained(2 * PIXEL, size(32)), f"autoattack:chunk={size(32)}"),
            rounds=1,
        ),
        Row(
            "ensemble",
            f"ensemble:standard beside AutoAttack, cnn_a_adv, 2/255, {size(32)} images",
            lambda: _autoattack(trained(2 * PIXEL, size(32)), "ensemble:standard"),
            rounds=1,
        ),
        Row(
            "eot",
            f"PGD-10 with EOT-10, random-resize on ResNet-20, 1/255, {size(64)} images",
            lambda: eot(resnet(PIXEL, size(64)), 10, 10),
        ),
        Row(
            "purification",
            f"a gradient of diffpure on mnist5k, {size(64)} images",
            lambda: purification(size(64), 0),
            {"bare chain": 1 / 1.05},
        ),
    ]


def _own_images(size: Size) -> list[Row]:
    """Training on images of the defense's own making."""
    return [
        Row("datafree-epoch", "DataFreeShield: an epoch of 100 images", lambda: _datafree("epoch")),
        Row(
            "datafree-synthesis",
            "DataFreeShield: 8 iterations of 50 images",
            lambda: _datafree("synthesis"),
        ),
    ]


def _processes(size: Size, tiny: bool) -> list[Row]:
    """What is measured in processes of their own."""
    scaled = ("--defense", "random-resize", "--attack", f"pgd+eot:steps={size(10)}")
    return [
        Row(
            "workers",
            f"workers: random-resize on mnist5k, PGD-10 with EOT, {size(512)} images",
            lambda: _workers((2, 1, 4), *scaled, "--n", str(size(512))),
            {"1 worker": 1.85},
            rounds=1 if tiny else 3,
        ),
        Row("start-list", "`bench list`", lambda: _start("-m", "bench", "list"), limit=0.3),
        Row("start-first", "README's first command", _first_command, limit=2.5),
        Row(
            "memory-224",
            f"PGD-10 at 224 x 224, efficientnet-lite0, {size(64)} images: peak memory",
            lambda: _memory(size(64)),
            limit=4096.0,
            unit="MiB",
            rounds=1,
        ),
    ]


def chosen(names: Sequence[str], tiny: bool = False) -> list[Row]:
    """The rows of these keys; all where none is named. Raises `Absent` for an unknown one."""
    rows = {row.key: row for row in table(tiny)}
    unknown = set(names) - set(rows)
    if unknown:
        raise Absent(f"no row {', '.join(sorted(unknown))}: there are {', '.join(rows)}")
    return [rows[name] for name in names] if names else list(rows.values())
