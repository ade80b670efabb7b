"""The part of `benchmarks/gpu.sh` that measures; see there."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.unet import build_unet
from bench.engine.execution import exact_float32, read_execution
from bench.engine.plan import plan
from bench.engine.request import read_request
from bench.engine.run import run_evaluations
from bench.noise import Noise, Stream
from bench.results.record import Record
from bench.results.store import Store
from benchmarks import peers, rows
from benchmarks.measure import Row, Run, measure
from benchmarks.page import machine

DDPM = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 256, 256],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
"""The network of google/ddpm-cifar10-32, with fresh weights."""

NOISE_SHARE = 0.03
VERDICTS = ("undefended", "random-resize", "bit-depth")


def ratios(device: str, tiny: bool) -> list[Row]:
    """Rows of the table, on the device."""

    def size(n: int) -> int:
        return 2 if tiny else n

    resnet = partial(peers.Problem, "cifar10_exact", "cifar_resnet20", device=device)
    loops: Mapping[str, Callable[[], Mapping[str, Run]]] = {
        "PGD-20, ResNet-20, 8/255": lambda: rows.pgd(resnet(8 * rows.PIXEL, size(1000)), 20),
        "PGD-20, ResNet-20, 0.5/255": lambda: rows.against_loop(
            resnet(0.5 * rows.PIXEL, size(1000)), 20
        ),
        "PGD-20, ResNet-20, 0.5/255, --compile on": lambda: rows.against_loop(
            resnet(0.5 * rows.PIXEL, size(1000)), 20, "on"
        ),
        "EOT-10, random-resize, ResNet-20": lambda: rows.eot(
            resnet(rows.PIXEL, size(256)), 2 if tiny else 10, 10
        ),
        "a gradient of diffpure on mnist5k": lambda: rows.purification(size(256), 0, device),
    }
    return [Row(title, title, sides, rounds=1 if tiny else 5) for title, sides in loops.items()]


def noise_beside_a_step(device: str, batch: int, rounds: int = 5) -> dict[str, float]:
    """Seconds of the numbers of one step, of the step itself, and the former's share."""
    where = torch.device(device)
    network = build_unet(DDPM).eval().requires_grad_(False).to(where)
    model = DiffusionModel(network, linear_alpha_bar(), (3, 32, 32)).to(where)
    images = torch.zeros(batch, 3, 32, 32, device=where)
    noise = Noise.of(0, Stream.EVAL, range(batch), device=where)
    with torch.no_grad(), exact_float32(where):
        numbers = _fastest(lambda n: noise.normal(f"step{n}", (3, 32, 32)), where, rounds)
        step = _fastest(lambda n: model(images, 100 + n), where, rounds)
    return {"numbers": numbers, "step": step, "share": numbers / (numbers + step)}


def _fastest(run: Callable[[int], Any], device: torch.device, rounds: int) -> float:
    seconds = []
    for number in range(rounds + 1):
        _wait(device)
        began = time.perf_counter()
        run(number)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def other_numbers(device: str, rows: int) -> dict[str, float]:
    """Normal numbers that differ from the CPU's, and by how many units in the last place."""
    shape = (3, 32, 32)
    here, there = (
        Noise.of(0, Stream.EVAL, range(rows), device=torch.device(where)).normal("x", shape).cpu()
        for where in ("cpu", device)
    )
    units = (here.view(torch.int32) - there.view(torch.int32)).abs()
    return {"of": units.numel(), "differ": int((units > 0).sum()), "units": int(units.max())}


def record_of(device: str, **options: Any) -> Record:
    """One evaluation on mnist5k."""
    request = read_request({"dataset": "mnist5k", **options}, "benchmark")
    execution = read_execution(device, 128, compile="auto")
    with tempfile.TemporaryDirectory() as folder:
        result = list(run_evaluations(plan(request)[-1:], Store(Path(folder)), execution))[-1]
    if result.record is None:
        raise RuntimeError(str(result.failure or result.rejected))
    return result.record


def verdicts(device: str, n: int) -> dict[str, int]:
    """By defense, images whose verdict on the device is another one than on the CPU."""
    other = {}
    for defense in VERDICTS:
        asked = {"defense": defense, "attack": "pgd+replay:steps=10", "n": n}
        here, there = (record_of(where, **asked).outcomes for where in ("cpu", device))
        pairs = zip(_judged(here), _judged(there), strict=True)
        other[defense] = sum(one != two for one, two in pairs)
    return other


def _judged(outcomes: Any) -> Sequence[Any]:
    return [tuple(row) for row in outcomes.correct("adversarial").tolist()]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    device, tiny = asked.device, asked.tiny
    told: dict[str, Any] = {"machine": machine(), "device": device, "tiny": tiny}

    def tell(name: str, value: Any) -> None:
        told[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)
        asked.out.write_text(json.dumps(told, indent=1) + "\n")

    for row in ratios(device, tiny):
        measured = measure(row)
        others = list(measured.values)[1:]
        sides = {name: measured.median(name) for name in measured.values}
        tell(
            row.title, measured.absent or {**sides, **{f"x {o}": measured.ratio(o) for o in others}}
        )
    numbers = noise_beside_a_step(device, 2 if tiny else 256)
    tell("numbers beside a step", {**numbers, "holds": numbers["share"] < NOISE_SHARE})
    tell("numbers other than on the CPU", other_numbers(device, 8 if tiny else 4096))
    tell("verdicts other than on the CPU", verdicts(device, 8 if tiny else 1000))
    cells = {
        "purification": {"defense": "diffpure", "attack": "pgd+replay:steps=2"},
        "data-free": {"defense": "datafreeshield:scale=quick", "attack": "pgd"},
    }
    for name, cell in cells.items():
        if tiny and name == "data-free":
            continue
        record = record_of(device, **cell, n=2 if tiny else 64)
        robust = record.metrics.adversarial.mean.value
        tell(f"one {name} evaluation", {"seconds": record.cost.seconds, "robust": robust})


if __name__ == "__main__":
    main()
