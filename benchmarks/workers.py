"""How much faster several processes are than one, as whole commands, with equal records.

    python benchmarks/workers.py pgd ../shared 5
    python benchmarks/workers.py suite ../shared 3
    python benchmarks/workers.py suite ../shared 3 1 2

`pgd`: `pgd:steps=100,restarts=3` on cifar_cnn_a_adv at 2/255 over all 1,017 images. `suite`: the
test-time defenses on mnist5k under PGD. Each with one process, two, four and the default, or with
those named at the end. They run in turn, so that what else the machine does meets all of them;
medians are told. Each process has one torch thread. The records must be equal but for times and
`environment`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VARIANTS = {
    "1": ["--workers", "1"],
    "2": ["--workers", "2"],
    "4": ["--workers", "4"],
    "default": [],
}
DEFENSES = ("bit-depth", "random-resize", "smoothing", "tte", "jpeg", "tvm", "gaussian-noise")


def command(what: str, data: Path) -> list[str]:
    """What is timed, without workers and folder."""
    words = [sys.executable, "-m", "bench", "run"]
    if what == "suite":
        for name in DEFENSES:
            words += ["--defense", name]
        return [*words, "--attack", "pgd:steps=20", "--n", "512"]
    return [
        *words,
        *("--defense", "undefended", "--attack", "pgd:steps=100,restarts=3", "--n", "1017"),
        *("--dataset", f"npz:{data}/data/cifar10_exact.npz", "--eps", "2/255"),
        *("--classifier", f"file:{data}/models/cifar_cnn_a_adv.safetensors"),
    ]


def records(folder: Path) -> list[object]:
    """What the records say, apart from times."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_bytes())
        content.pop("finished")
        content.pop("environment")
        content["cost"].pop("seconds")
        found.append(content)
    return found


def main() -> None:
    """Time the variants in turn, and compare their records."""
    os.environ["OMP_NUM_THREADS"] = "1"
    what, data, rounds = sys.argv[1], Path(sys.argv[2]).resolve(), int(sys.argv[3])
    asked = sys.argv[4:] or list(VARIANTS)
    if not set(asked) <= set(VARIANTS):
        sys.exit(f"workers are {', '.join(VARIANTS)}, not {' '.join(asked)}")
    variants = {name: VARIANTS[name] for name in asked}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    first: list[object] = []
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(rounds):
            for name, workers in variants.items():
                out = Path(scratch) / "out"
                shutil.rmtree(out, ignore_errors=True)
                began = time.perf_counter()
                words = [*command(what, data), *workers, "--out", str(out)]
                subprocess.run(words, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - began)
                first = first or records(out)
                assert records(out) == first, f"{name} workers made other records"
    alone = statistics.median(next(iter(seconds.values())))
    for name, each in seconds.items():
        took = statistics.median(each)
        print(f"{what}, workers {name:>7}: {took:6.2f} s, {alone / took:.2f} times the first")
    print(f"{len(first)} records, equal in all {len(variants) * rounds} runs")


if __name__ == "__main__":
    main()
