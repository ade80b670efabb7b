"""The page of the table, in Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import ascii_uppercase
from textwrap import fill
from typing import Any

import torch

from bench.engine.environment import commit
from benchmarks.measure import OURS, Measured

LIBRARIES = ("torch", "numpy", "foolbox", "torchattacks", "pyautoattack")

HEAD = """# Speed, beside named peers

<!-- Written by `python -m benchmarks`; the text is in benchmarks/page.py. -->

All sides of a row run in one process on the same images, one after the other in turn; medians of
several rounds count. A ratio above 1 says how many times as long the peer takes. Each side has run
once before: how long that first time took stands in `benchmarks/speed.json`.

`bench` is a whole [evaluation](../glossary.md#evaluation), with one thread: attack, judge, checks
and record. Peers are the attack alone. Where a row names all workers, it has its default workers;
where it names the whole command, that starts in a process of its own as well. PGD of torchattacks
and foolbox has two threads, all others have one. With `--compile on` gradients are read in bfloat16
([search in bfloat16](../glossary.md#search-in-bfloat16)), for which machine A has units; peers
compute in float32. A letter in the last column names the machine; times of two cannot be compared.

"""

TAIL = """
## What was tried

CPU time of one gradient to the images, least of five, one thread, on a machine that did other work:

| what | as it is | tried | |
|---|---|---|---|
| `torch.compile`, the U-Net of mnist5k, 64 images | 0.23 s | 0.24 s | and 4 s to compile |
| `torch.compile`, a U-Net of 2.9 million parameters, 64 images | 1.01 s | 1.10 s | and 33 s |
| channels last, folded ResNet-20, 128 images | 0.176 s | 0.174 s | |

None of these brings anything here, so nothing is compiled and images stay as they are. Of ResNet-20
a compiled pass took 8 % less than a folded one, and 9 to 36 s to compile.

What did bring something on the CNN of mnist5k (before and after, each pair in one session of its
own; the machine's pace wavers between sessions):

| what | images | before | now |
|---|---|---|---|
| folded kernels lie channels last: a gradient | 24 | 7.0 ms | 5.7 ms |
|  | 128 | 40 ms | 27 ms |
| so does a first kernel of one channel: a gradient | 25 | 6.5 to 7.0 ms | 5.6 to 5.9 ms |
|  | 128 | 37 to 39 ms | 35 to 36 ms |
| the command keeps memory that it frees: a gradient | 128 | 39 ms | 31 ms |
|  a pass of its own | 128 | 22 ms | 13 ms |

On ResNet-20 the first changes nothing, not even a bit, and the last 5 to 8 %. What the last saves
is the kernel's clearing of each page that comes again, in blocks of at most 32 MiB.

`pgd+replay:steps=5` on 64 images of `diffpure` took 85 s of CPU where commit 74360b1 took 70: the
checks of a run have grown, and the judge's 20 draws a point take most of both.

Whole commands on two cores of an AMD EPYC without AVX-512, one after the other, 2026-11-30:

| what | wall time |
|---|---|
| seven test-time defenses on 512 digits, PGD-20: one worker | 527 s |
|  two workers: 1.89 times as fast | 279 s |
| the same seven again, hours later: one worker | 481 s |
|  two workers: 2.15 times as fast | 223 s |
| `pgd+replay` on 64 images of `diffpure`, commit 74360b1, two torch threads | 154 s |
|  now, default workers, two shards (three runs) | 126, 138, 152 s |

The seven ran once each way (`benchmarks/workers.py suite`), the first time in shards of 32 images
of the random ones, the second in shards of 128, as they are now; records were equal. Two cores
cannot be more than twice as fast as one: between the two runs the machine gained pace.

Of the replay's 126 s 9 are to import torch and diffusers, 12 checks before the attack, which each
process makes, and 8 the last look at points, which one makes alone. The network takes the rest,
three fifths of it in convolutions; channels last, or other batch sizes, bring nothing there.

## Measure it again

```text
pip install foolbox; pip install --no-deps torchattacks
BENCH_REAL_DATA=/path/with/data/and/models python -m benchmarks --again
```

It takes about 20 minutes on two cores and wants a machine that does nothing else. Single rows:
`python -m benchmarks pgd-resnet eot`. On a GPU: `benchmarks/gpu.sh`. What larger evaluations cost
is computed on [another page](scale.md).
"""


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "system": f"{platform.system()} {platform.release()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def now() -> str:
    """The day, and the commit."""
    return f"{datetime.now(UTC).date().isoformat()}, {commit()[0][:7]}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def page(rows: Sequence[Measured]) -> str:
    """The whole page. Times of two machines cannot be compared, so each row names its own."""
    machines = [_described(row.machine) for row in rows if row.machine]
    letters = dict(zip(dict.fromkeys(machines), ascii_uppercase, strict=False))
    lines = [_line("what", "side", "median", "ratio", "answer", "wanted", "when, commit, machine")]
    lines += ["|" + "---|" * 7]
    for row in rows:
        lines += _lines(row, letters.get(_described(row.machine), ""))
    named = [
        fill(f"- {letter}: {text}", 100, subsequent_indent="  ") for text, letter in letters.items()
    ]
    return HEAD + "\n".join(lines) + "\n\nMachines:\n\n" + "\n".join(named) + "\n" + TAIL


def _lines(row: Measured, letter: str) -> list[str]:
    if row.absent:
        return [_line(row.title, "", "not measured", "", row.absent, "", row.when)]
    return [
        _line(
            row.title if name == OURS else "",
            name,
            f"{row.median(name):,.{2 if row.unit == 's' else 0}f} {row.unit}",
            "" if name == OURS else f"{row.ratio(name):.2f}",
            row.answers.get(name, ""),
            _wanted(row, name),
            f"{row.when}, {letter}" if name == OURS else "",
        )
        for name in row.values
    ]


def _wanted(row: Measured, name: str) -> str:
    verdict = row.verdict(name)
    if not verdict:
        return ""
    if name == OURS:
        return f"at most {row.limit:g} {row.unit}: {verdict}"
    return f"{row.wanted[name]:.2f}: {verdict}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _described(made: dict[str, Any]) -> str:
    """A machine in words; none for a row that was not measured."""
    if not made:
        return ""
    versions = ", ".join(f"{name} {text}" for name, text in made["versions"].items())
    gpu = f" and {made['gpu']}" if made["gpu"] else ""
    return (
        f"{made['cores']} cores of {made['cpu']}{gpu}, {made['system']}, "
        f"Python {made['python']}; {versions}."
    )
