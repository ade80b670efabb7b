"""Makes the pictures of these pages again, from the digits in the package and committed records.

    python docs/pictures.py                    # all of them, into docs/images
    python docs/pictures.py purification --tiny --out /tmp/pictures

No picture holds anything but the package's own digits, and images that were made of them.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from bench_defenses.datafree.datafreeshield import DataFreeShieldParams
from bench_defenses.datafree.images import synthetic_images
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import bench
from bench.defense import DefendedClassifier
from bench.engine.build import build
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import run_evaluation
from bench.noise import BuildNoise, Noise, Stream
from bench.report.words import attack_label
from bench.results.points import read_points
from bench.results.record import Record
from bench.results.store import Store, read_record
from bench.studies.plots import png

ROOT = Path(__file__).resolve().parents[1]
EPS = 0.2
RIGHT, WRONG, QUIET = "#00734f", "#b34700", "#555555"


@dataclass(frozen=True)
class Scale:
    """How much is computed.

    Attributes:
        n: images that are attacked.
        steps: of an attack.
        chain: steps of a purifying chain.
        made: synthetic images a class, and their iterations.
    """

    n: int
    steps: int
    chain: int
    made: tuple[int, int]


FULL = Scale(6, 15, 10, (8, 100))
TINY = Scale(2, 1, 2, (1, 2))


@dataclass(frozen=True)
class Attacked:
    """One defense under one attack: what went in, the points, and the answers."""

    evaluation: Evaluation
    record: Record
    points: Tensor

    @property
    def images(self) -> Tensor:
        return self.evaluation.setup.images.pixels()

    @property
    def labels(self) -> Tensor:
        return self.evaluation.setup.images.labels

    def says(self, which: str) -> Tensor:
        """The answers under the judge's first draw, or the attack's own, (n,)."""
        return torch.from_numpy(self.record.outcomes.predictions(which)[:, 0])


def attacked(
    defense: str, attack: str, scale: Scale, folder: Path, *, eps: float = EPS
) -> Attacked:
    """Run one row, without its base."""
    request = bench.Request(defenses=(defense,), attacks=(attack,), epsilons=(eps,), n=scale.n)
    evaluation = plan(request)[-1]
    store = Store(folder)
    record = run_evaluation(evaluation, store, Execution())
    return Attacked(evaluation, record, torch.from_numpy(read_points(record, store.folder)))


# Strips of images --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """A picture (C, H, W) in [0, 1] with a line above and one below, in a colour."""

    pixels: Tensor
    above: str = ""
    below: str = ""
    colour: str = QUIET


def strip(rows: Sequence[tuple[str, Sequence[Tile | None]]], tile: float = 1.0) -> bytes:
    """A PNG of rows of tiles, each row with its name at the left; on white, for 900 pixels."""
    columns = max(len(tiles) for _, tiles in rows)
    figure = Figure(figsize=(1.1 + tile * columns, 1.32 * tile * len(rows)), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    left = 1.05 / figure.get_size_inches()[0]
    figure.subplots_adjust(left, 0.12 / len(rows) + 0.02, 0.995, 1 - 0.22 / len(rows), 0.08, 0.42)
    for (name, tiles), line in zip(rows, grid, strict=True):
        for panel, one in zip(line, [*tiles, *[None] * (columns - len(tiles))], strict=True):
            panel.set_axis_off()
            if one is not None:
                draw(panel, one)
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center")
    return small(png(figure))


def draw(panel: object, one: Tile) -> None:
    shown = one.pixels.detach().clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy()
    panel.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    panel.set_title(one.above, fontsize=8, color=QUIET, pad=3)
    panel.text(
        0.5, -0.05, one.below, transform=panel.transAxes, ha="center", va="top", fontsize=9,
        color=one.colour,
    )  # fmt: skip


def small(content: bytes) -> bytes:
    """The same PNG in 256 colours."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    out = io.BytesIO()
    image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        out, "PNG", optimize=True
    )
    return out.getvalue()


def answered(pixels: Tensor, above: str, says: int, label: int) -> Tile:
    return Tile(pixels, above, f"says {says}", RIGHT if says == label else WRONG)


def purification(scale: Scale, folder: Path) -> bytes:
    """A digit through diffpure: as it is; under points of the undefended network, which it undoes;
    and under points of an attack that goes through the chain and knows its noise.
    """
    defense = f"diffpure:steps={scale.chain}"
    weak = attacked(defense, f"pgd:gradient=blind,steps={scale.steps}", scale, folder)
    strong = attacked(defense, f"pgd+replay:steps={scale.steps}", scale, folder)
    clean, labels = weak.says("clean"), weak.labels
    undone = (clean == labels) & (weak.says("adversarial") == labels)
    fooled = undone & (strong.says("replayed") != labels)
    chosen = [*torch.where(fooled)[0], *torch.where(undone)[0], *range(scale.n)][:1]
    defended = build(weak.evaluation, torch.device("cpu"))
    at = int(chosen[0])
    return strip(
        [
            ("no\nattack", chain(defended, weak, weak.images, at)),
            ("attacked\nwithout the\ndefense", chain(defended, weak, weak.points, at)),
            (
                "attacked\nthrough it,\nnoise known",
                chain(defended, strong, strong.points, at, known=True),
            ),
        ]
    )


def chain(
    defended: DefendedClassifier, row: Attacked, points: Tensor, at: int, *, known: bool = False
) -> list[Tile | None]:
    """What goes in, some states of the chain, what comes out, and the answer to it: under a draw of
    the judge's, or under the noise that the attack knew.
    """
    point = points[at : at + 1]
    ids = row.evaluation.setup.images.ids[at : at + 1]
    stream = Stream.FIXED if known else Stream.EVAL
    noise = Noise.of(row.evaluation.identity["seeds"]["attack"], stream, ids, 0).at("forward")
    label = int(row.labels[at])
    with torch.no_grad():
        states = defended.forward_pass(view="states")(point, noise)[0]
        times = defended.forward_pass(view="times")(point, noise)[0]
        purified = defended.forward_pass(view="purified")(point, noise)
        says = int(defended(point, noise).argmax(1))
        undefended = int(row.evaluation.setup.classifier(point, noise).argmax(1))
    kept = np.linspace(1, len(states) - 2, 5).round().astype(int)
    inside = [Tile((states[i] + 1) / 2, f"t = {int(times[i]) + 1}") for i in kept]
    first = answered(point[0], "image", undefended, label)
    return [first, *inside, answered(purified[0], "purified", says, label)]


def synthesis(scale: Scale, folder: Path) -> bytes:
    """Images that DataFreeShield makes out of the network alone, a row a class."""
    each, iterations = scale.made
    classifier = bench.load_classifier()
    params = DataFreeShieldParams(
        images=10 * each, iterations=iterations, synthesis_batch=10 * each, targets="balanced"
    )
    made = synthetic_images(classifier, (1, 28, 28), params.synthesis_recipe(), BuildNoise(0))
    rows = []
    for label in range(10):
        mine = made.images[made.labels == label][:each]
        rows.append((f"a {label}", [Tile(one) for one in mine]))
    return strip(rows, tile=0.65)


MASKED = {
    "jpeg": "pgd:gradient=bpda",
    "thermometer": "pgd:gradient=bpda",
    "temperature": "pgd:loss=margin",
}
"""Defenses that hide their gradient, and an attack that does not need it."""


def masked(scale: Scale, folder: Path) -> bytes:
    """Digits of which plain PGD breaks none behind defenses without a gradient, and the attack that
    fits the defense breaks each.
    """
    many = replace(scale, n=10 * scale.n)
    rows: list[tuple[str, list[Tile | None]]] = []
    for defense, fitting in MASKED.items():
        naive = attacked(defense, "pgd", many, folder, eps=0.1)
        strong = attacked(defense, fitting, many, folder, eps=0.1)
        labels, weak, broken = naive.labels, naive.says("adversarial"), strong.says("adversarial")
        right = (naive.says("clean") == labels) & (weak == labels)
        # Of each row other digits, so that the rows do not look alike.
        chosen = [*torch.where(right & (broken != labels))[0], *range(many.n)]
        tiles: list[Tile | None] = []
        for at in map(int, chosen[len(rows) :: 3][:2]):
            label = int(labels[at])
            tiles += [
                answered(naive.images[at], "image", int(naive.says("clean")[at]), label),
                answered(naive.points[at], "plain PGD", int(weak[at]), label),
                answered(strong.points[at], "fitting attack", int(broken[at]), label),
            ]
        rows.append((defense, tiles))
    return strip(rows)


def curve(scale: Scale, folder: Path) -> bytes:
    """Robust accuracy over eps, the worst of a naive and a fitting attack."""
    report = bench.evaluate(
        defenses=("undefended", "bit-depth", "random-resize"),
        attacks=(f"pgd:steps={scale.steps}", f"bpda:steps={scale.steps}"),
        eps=(0.02, 0.05, 0.1, 0.15, 0.2),
        n=10 * scale.n,
        out=folder / "curve",
    )
    content = io.BytesIO()
    report.plot().figure.savefig(content, format="png", dpi=100)
    return small(content.getvalue())


GALLERY = ROOT / "leaderboards" / "records" / "gallery"
PLAIN, FITTING = "#c1551b", "#1f5fa8"
FOOLED = 0.1
"""What plain PGD leaves at least of a defense that is drawn."""


def naive_and_fitting(scale: Scale, folder: Path) -> bytes:
    """What plain PGD leaves of the gallery's defenses that fool it, and what the attack that fits
    each leaves; from the committed records.
    """
    rows: dict[str, list[Record]] = {}
    for path in sorted(GALLERY.glob("*.json")):
        record = read_record(path)
        rows.setdefault(record.title["defense"], []).append(record)
    pairs = [sorted(pair, key=left, reverse=True) for pair in rows.values() if len(pair) == 2]
    pairs = sorted((pair for pair in pairs if left(pair[0]) > FOOLED), key=lambda p: left(p[0]))
    figure = Figure(figsize=(9, 4.3), dpi=100)
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    figure.subplots_adjust(0.19, 0.15, 0.82, 0.88)
    for at, (naive, fitting) in enumerate(pairs):
        marked(panel, naive, at + 0.15, "o", PLAIN, "plain PGD" if at == 0 else None)
        told = "the attack that fits the defense (named at the right)" if at == 0 else None
        marked(panel, fitting, at - 0.15, "s", FITTING, told)
        panel.text(101, at, attack_label(fitting), color=FITTING, va="center")
    panel.set_yticks(range(len(pairs)), [naive.title["defense"] for naive, _ in pairs])
    panel.set_xlim(-1, 100)
    panel.set_xlabel("robust accuracy in percent, with 95 % intervals")
    panel.grid(axis="x", color="#e5e5e5")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="upper center", ncols=2, frameon=False)
    return small(png(figure))


def left(record: Record) -> float:
    return record.metrics.adversarial.mean.value


def marked(
    panel: Axes, record: Record, height: float, marker: str, colour: str, label: str | None
) -> None:
    """A robust accuracy with its interval."""
    mean = record.metrics.adversarial.mean
    low, middle, high = (100 * value for value in (mean.low, mean.value, mean.high))
    panel.errorbar(
        middle, height, xerr=[[middle - low], [high - middle]], fmt=marker, color=colour,
        capsize=4, label=label,
    )  # fmt: skip


PICTURES: dict[str, Callable[[Scale, Path], bytes]] = {
    "purification": purification,
    "synthesis": synthesis,
    "masked": masked,
    "curve": curve,
    "naive-and-fitting": naive_and_fitting,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*PICTURES, []], help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--tiny", action="store_true", help="whether it runs, not how it looks")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        for name in asked.names or PICTURES:
            content = PICTURES[name](TINY if asked.tiny else FULL, Path(scratch))
            (asked.out / f"{name}.png").write_bytes(content)
            print(f"{name}.png: {len(content) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
