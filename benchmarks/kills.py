"""`kill -9` of the driver or of a worker, again and again: the records are those of one process.

    python benchmarks/kills.py local 50
    python benchmarks/kills.py ray 50

A suite of tiny evaluations runs under the executor. At random moments one of its processes is
killed; a driver that died is started again with the same command. When a suite is done it begins
anew in another folder, until there were so many kills. Each folder must hold what `--executor
inline` makes: every record once, equal but for times and `environment`, and nothing else.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SUITE = """
attack = "pgd:steps=2"
n = 512
seed = [0, 1, 2, 3]

[[run]]
defense = ["bit-depth", "gradient-killer", "temperature"]
"""


def command(executor: str, folder: Path, out: str) -> list[str]:
    """The suite under an executor."""
    words = [
        "--suite",
        str(folder / "suite.toml"),
        "--batch-size",
        "64",
        "--out",
        str(folder / out),
    ]
    workers = [] if executor == "inline" else ["--workers", "2"]
    return [sys.executable, "-m", "bench", "run", *words, "--executor", executor, *workers]


def children() -> dict[int, list[int]]:
    """The children of each process."""
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return found


def workers_of(driver: int, executor: str) -> list[int]:
    """Its worker processes."""
    by_parent, below, found = children(), [driver], []
    while below:
        below = [child for one in below for child in by_parent.get(one, [])]
        found += below
    if executor == "local":
        return found
    return [one for one in found if title_of(one).startswith(b"ray::Worker")]


def title_of(process: int) -> bytes:
    """What a process calls itself; empty for one that is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def suite(executor: str, folder: Path, out: str, chance: random.Random, most: int) -> Counter[str]:
    """Run the suite to its end; returns how often which kind of process was killed."""
    killed: Counter[str] = Counter()
    while True:
        with (folder / f"{out}.log").open("ab") as log:
            driver = subprocess.Popen(command(executor, folder, out), stdout=log, stderr=log)
        began = time.monotonic()
        while driver.poll() is None and killed.total() < most:
            time.sleep(chance.uniform(0.3, 2.0))
            workers = workers_of(driver.pid, executor)
            if not list((folder / out).glob(".work/*/*")) or not workers:
                continue
            kind = chance.choice(["driver", "worker", "worker"])
            victim = driver.pid if kind == "driver" else chance.choice(workers)
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed[kind] += 1
            print(f"{killed.total():3} {kind} after {time.monotonic() - began:.1f} s", flush=True)
            if kind == "driver":
                break
        code = driver.wait()
        if code == 0:
            return killed
        if code != -signal.SIGKILL:
            said = (folder / f"{out}.log").read_text().splitlines()[-20:]
            raise SystemExit("\n".join([f"the command ended with {code}:", *said]))


def records(folder: Path) -> dict[str, object]:
    """What each record says, apart from times; a second one of an evaluation would be seen."""
    found: dict[str, object] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_bytes())
        content.pop("finished")
        content["cost"].pop("seconds")
        content.pop("environment")
        assert content["id"] not in found, f"{path} is doubled"
        found[content["id"]] = content
    return found


def main() -> None:
    """Kill, count, compare."""
    executor, most = sys.argv[1], int(sys.argv[2])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    chance, killed = random.Random(0), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        # Ray writes a token into the home folder.
        os.environ["HOME"] = name
        (folder / "suite.toml").write_text(SUITE)
        subprocess.run(command("inline", folder, "alone"), check=True, capture_output=True)
        expected = records(folder / "alone")
        rounds = 0
        while killed.total() < most:
            rounds += 1
            out = f"round-{rounds}"
            killed += suite(executor, folder, out, chance, most - killed.total())
            assert records(folder / out) == expected, f"{folder / out} differs"
            left = list((folder / out / ".work").iterdir())
            assert not left, left
            points = len(list((folder / out).glob("*.safetensors")))
            assert points == len(expected), f"{points} files of points"
    print(
        f"{executor}: {killed.total()} kills ({killed['driver']} of the driver, "
        f"{killed['worker']} of workers) in {rounds} runs of {len(expected)} evaluations: "
        "every record once, equal to inline"
    )


if __name__ == "__main__":
    main()
