"""What evaluations at the scale of publications cost, computed: operations counted on networks
without weights, passes told by the attacks, one assumption on GPUs. Writes docs/results/scale.md.

    python -m benchmarks.scale                 # from benchmarks/scheduler.json
    python -m benchmarks.scheduler --out benchmarks/scheduler.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.attack import Passes
from bench.diffusion.guided import GuidedParams, configuration
from bench.diffusion.unet import build_unet
from bench.engine.cost import GPU_FLOPS
from bench.engine.shards import MIN_SHARD_IMAGES
from bench.models.nets import build
from bench.plugins.create import create_attack
from benchmarks.gpu import DDPM

HERE = Path(__file__).resolve().parent
PAGE, SCHEDULER = HERE.parent / "docs" / "results" / "scale.md", HERE / "scheduler.json"
GPUS = (1, 8, 64)
JUDGED = 20


def operations(make: Callable[[], nn.Module], shape: tuple[int, ...], *more: Any) -> float:
    """Of one forward pass of an image of this shape; nothing is computed."""
    with torch.device("meta"):
        network = make().eval()
        images = torch.zeros(1, *shape)
        inputs = [torch.tensor([0]) if one == "time" else one for one in more]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images, *inputs)
    return float(counter.get_total_flops())


def networks() -> dict[str, float]:
    """Operations of a forward pass, by name."""
    import timm

    small, large = (3, 32, 32), (3, 224, 224)
    return {
        "ResNet-20": operations(lambda: build("resnet20", 10, 3), small),
        "WRN-28-10": operations(lambda: build("wrn28-10", 10, 3), small),
        "ResNet-50": operations(lambda: timm.create_model("resnet50"), large),
        "DDPM, 32 x 32": operations(lambda: build_unet(DDPM), small, "time"),
        "guided diffusion, 256 x 256": operations(
            lambda: build_unet(configuration(GuidedParams(path="-"))), (3, 256, 256), "time"
        ),
    }


@dataclass(frozen=True)
class Cell:
    """A row: an attack on a network, with a chain of so many steps of a denoiser before it."""

    data: str
    images: int
    side: int
    classifier: str
    attack: str
    draws: int = 1
    denoiser: str = ""
    steps: int = 0

    def passes(self) -> Passes:
        """Of an image that survives, those of the judge and of the check among them."""
        classes = 1000 if self.side > 100 else 10
        each = create_attack(self.attack).attack.plugin.passes(classes)
        assert each is not None
        judged = JUDGED if self.steps else 1
        return each * self.draws + Passes(2 * judged + 1)

    def operations(self, networks: dict[str, float]) -> float:
        """Of one pass of an image."""
        chain = self.steps * networks[self.denoiser] if self.steps else 0.0
        return chain + networks[self.classifier]

    def hours(self, networks: dict[str, float]) -> float:
        """On one GPU, where every image survives."""
        total = self.images * self.passes().total * self.operations(networks)
        return total / GPU_FLOPS / 3600

    def busy(self, gpus: int) -> int:
        """How many of these GPUs its shards keep at work."""
        return min(gpus, -(-self.images // MIN_SHARD_IMAGES))

    def gigabytes(self) -> float:
        """Of points in float32."""
        return self.images * 3 * self.side**2 * 4 / 1e9

    def __str__(self) -> str:
        front = f"DiffPure ({self.steps} steps), " if self.steps else ""
        draws = f", EOT-{self.draws}" if self.draws > 1 else ""
        return f"{front}{self.classifier}, {self.attack}{draws}"


def cells() -> list[Cell]:
    """What papers report: whole test sets of plain networks, 512 images of purified ones."""
    cifar, imagenet = ("CIFAR-10", 10_000, 32), ("ImageNet", 5_000, 224)
    ddpm, guided = ("DDPM, 32 x 32", 100), ("guided diffusion, 256 x 256", 150)
    return [
        Cell(*cifar, "ResNet-20", "pgd:steps=100"),
        Cell(*cifar, "WRN-28-10", "ensemble:standard"),
        Cell(*cifar, "WRN-28-10", "autoattack"),
        Cell("CIFAR-10", 512, 32, "WRN-28-10", "pgd:steps=40", 20, *ddpm),
        Cell(*imagenet, "ResNet-50", "pgd:steps=100"),
        Cell(*imagenet, "ResNet-50", "ensemble:standard"),
        Cell(*imagenet, "ResNet-50", "autoattack"),
        Cell("ImageNet", 512, 224, "ResNet-50", "pgd:steps=40", 20, *guided),
    ]


def hours(value: float) -> str:
    """Hours for a reader."""
    if value < 1 / 60:
        return f"{3600 * value:.1f} s"
    if value < 0.5:
        return f"{60 * value:.1f} min"
    return f"{value:,.1f} h" if value < 48 else f"{value / 24:,.0f} days"


def page(counted: dict[str, float], scheduler: dict[str, Any]) -> str:
    """The page."""
    lines = [HEAD]
    lines += ["| network | operations of a forward pass |", "|---|---|"]
    lines += [f"| {name} | {number / 1e9:,.2f}e9 |" for name, number in counted.items()]
    lines += [RULES]
    lines += ["| data | cell | passes an image | points | 1 GPU | 8 GPUs | 64 GPUs |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for cell in cells():
        alone = cell.hours(counted)
        shared = " | ".join(hours(alone / cell.busy(gpus)) for gpus in GPUS)
        size, total = f"{cell.gigabytes():.2f} GB", f"{cell.passes().total:,}"
        lines.append(f"| {cell.data}, {cell.images:,} | {cell} | {total} | {size} | {shared} |")
    return "\n".join(lines) + "\n" + bottlenecks(scheduler)


def bottlenecks(scheduler: dict[str, Any]) -> str:
    """What stands in the way, with the figures of the simulation."""
    asked, costs, shares = (scheduler[key] for key in ("asked", "costs", "of the work"))
    shards = asked["evaluations"] * asked["shards"]
    return TAIL.format(
        number=shards,
        workers=asked["workers"],
        evaluations=asked["evaluations"],
        each=asked["shards"],
        seconds=asked["seconds"],
        often=1 / asked["failing"],
        failures=scheduler["failures"],
        days=scheduler["days"],
        **{f"cost_{name}": 1e3 * value for name, value in costs.items()},
        **shares,
    )


HEAD = """# Toward a million cells, on paper

<!-- Written by `python -m benchmarks.scale`; the text is in benchmarks/scale.py. -->

Nothing on this page was run on a GPU. Operations are counted on the networks by torch, without
weights; passes are those that each attack tells of an image that survives. So a row is the most
that it can cost: a broken image is not attacked any further.
"""

RULES = f"""
A backward pass to the image takes as many operations as a forward pass. A GPU of the H100 class is
taken to do {GPU_FLOPS / 1e12:g}e12 operations a second: 30 % of what its maker names for float32.
Verdicts are in float32. [Shards](../glossary.md#shard) are independent, so 8 GPUs take an eighth;
but a shard has 64 images at least, so that 512 images keep 8 GPUs at work and no more. On a GPU a
shard is one batch of 1,024 by default: `--batch-size 64` deals 512 images out.
"""

TAIL = """
## What stands in the way

- **Passes, where a chain is purified.** Every number of such a row is a hundred passes or more
  through the larger network. No bookkeeping shows beside it.
- **Points.** A record holds a few bytes an image and draw; its points take all the space above. A
  million cells of CIFAR-10 keep 123 TB of points, and 40 GB of records.
- **Artifacts.** A trained student is made once a machine and cache. Workers of several machines
  should share `BENCH_CACHE`, else each machine trains it.
- **Network.** A shard of 128 images of CIFAR-10 brings 1.6 MB of points back, one of ImageNet
  77 MB. At ten seconds a shard, 64 workers bring 10 MB a second, or 490.
- **One folder.** Looking among records is reading a list of names. The list is kept and read again
  when the folder changed, which takes half a second at 100,000 records. Give each suite a folder of
  its own, of 10,000 evaluations at most, and join boards from several folders.
- **Plans.** Every worker plans the whole suite when it starts. Workers that fail often plan often.

## A million shards whose workers fail

`benchmarks/scheduler.py` measures what claiming, saving, loading, passing by and planning cost on
a machine, and plays a suite through with these costs.

| the suite | |
|---|---|
| shards, of {seconds:g} s each | {number:,} |
| evaluations, of {each} shards each | {evaluations:,} |
| workers | {workers} |
| failures, one in {often:,.0f} shards | {failures:,} |
| days | {days:.1f} |

| step | each | all, as a share of the work |
|---|---|---|
| claim and save a shard | {cost_shard:.2f} ms | {shards} |
| load another worker's shard | {cost_load:.2f} ms | {loads} |
| pass by an evaluation | {cost_visit:.3f} ms | {visits} |
| plan an evaluation | {cost_plan:.2f} ms | {plans} |
| **bookkeeping together** | | **{bookkeeping}** |
| shards lost with their workers | | {lost} |
| workers without work | | {waiting} |

A worker that helps with an evaluation loads all of its finished shards first. That, and the plan
that a successor makes, grow with the failures.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scheduler", type=Path, default=SCHEDULER)
    parser.add_argument("--to", type=Path, default=PAGE)
    asked = parser.parse_args()
    text = page(networks(), json.loads(asked.scheduler.read_text()))
    asked.to.write_text(text)


if __name__ == "__main__":
    main()
