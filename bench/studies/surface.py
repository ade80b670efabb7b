"""The study `surface`: how steeply does the loss rise around images, with and without a part of a
defense?

Lee et al. (ICML 2024, DataFreeShield) say that GradRefine flattens the loss surface.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bench.engine.build import build
from bench.engine.evaluation import Evaluation
from bench.errors import BadInput
from bench.execution.local import several
from bench.losses import cross_entropy
from bench.randomness import Query, RandomnessModel
from bench.results.arrays import Floats
from bench.results.intervals import student_mean
from bench.spec import Specs
from bench.studies import plots
from bench.studies.builds import BuildCount, declared, planned
from bench.studies.deployed import check_linf, columns, defense_identities, shown
from bench.studies.study import EVERYTHING, Study, StudyResult, StudySetting
from bench.studies.synthetic import short_names
from bench.victim import Victim, frozen

DIRECTIONS = ("adversarial", "random")
_BASE = "images=500,iterations=150,synthesis_batch=50,epochs=10,batch=50"
_NO_ATTACK = "null"
_WITHOUT_GRADIENT = 0.01
"""More images without a gradient would make a loss look flat that is not."""


class SurfaceParams(BuildCount):
    defenses: Specs = Field(
        (f"datafreeshield:{_BASE},group=2", f"datafreeshield:{_BASE},group=1"),
        min_length=1,
        description="defenses joined by +, in parentheses where they hold commas; each is compared "
        "with the first",
    )
    points: int = Field(5, ge=2, le=100, description="points on each way, image and rim included")


class Surface(Study[SurfaceParams]):
    """How steeply does the loss rise around images, with and without a part of a defense?

    From each image a straight way leads to the rim of the Linf ball: along the signs of the
    gradient of the cross-entropy at the image, and along random signs, which are the same for all
    defenses. The rise is the mean cross-entropy at a point of the
    way minus that at the image, in nats. Intervals are Student's over builds, on the same images.
    """

    Params = SurfaceParams
    uses = EVERYTHING | {"workers"}

    def plugins(self) -> dict[str, object]:
        return defense_identities(self.params.defenses)

    def sources(self, setting: StudySetting) -> dict[str, str]:
        """Hashes of the data that the defenses declare."""
        return declared(planned(setting, self.params.defenses, _NO_ATTACK, 0))

    def run(self, setting: StudySetting) -> StudyResult:
        params = self.params
        check_linf(setting)
        builds = [
            planned(setting, params.defenses, _NO_ATTACK, number) for number in range(params.builds)
        ]
        ordered = [one for same in zip(*builds, strict=True) for one in same]

        def compute(place: int) -> bytes:
            evaluation, number = ordered[place], place % params.builds
            setting.progress(f"{evaluation.defense.spec}: build {number + 1} of {params.builds}")
            return rises(setting, evaluation, params.points).tobytes()

        answers = several(len(ordered), compute, setting.device, setting.workers, setting.progress)
        flat = np.stack([np.frombuffer(one, dtype=np.float64) for one in answers])
        shape = len(params.defenses), params.builds, len(DIRECTIONS), params.points
        specs, made = [one.defense.spec for one in builds[0]], flat.reshape(shape)
        for spec, one in zip(specs, made, strict=True):
            if not np.isfinite(one).all():
                raise BadInput(
                    f"defense {spec!r} has images without a gradient or without a finite loss, "
                    "which is no flat surface: leave it out"
                )
        table = surface_table(specs, made)
        return StudyResult(
            tables={"surface": table},
            figures={"surface": surface_figure(table)},
            sentence=sentence(table),
            scale=f"{params.builds} builds of {len(specs)} defenses, "
            f"{len(setting.setup.images)} images",
        )


def rises(setting: StudySetting, evaluation: Evaluation, points: int) -> Floats:
    """Mean cross-entropy on each way minus that at the images: (directions, points), in nats; NaN
    for a defense that has no gradient on some images.
    """
    defended = build(evaluation, setting.device)
    setup = evaluation.setup
    images = setup.images.pixels().to(setting.device)
    labels = setup.images.labels.to(setting.device)
    rows = torch.arange(len(images), device=setting.device)
    with frozen(defended):
        victim = Victim(
            defended,
            setup.images.ids,
            # One draw each, so that what differs along a way is the way.
            randomness=RandomnessModel("replay"),
            root=setting.seed,
            batch_size=setting.batch_size,
            device=setting.device,
        )
        ways = _ways(victim, images, labels, rows)
        if float((victim.slopes.zero + victim.slopes.lost).double().mean()) > _WITHOUT_GRADIENT:
            return np.full((len(ways), points), np.nan)
        start = _loss(victim, images, labels, rows)
        shares = np.linspace(0, 1, points)[1:] * setup.threat.eps
        losses = [
            [
                _loss(victim, setup.threat.ascend(images, way, s, images), labels, rows)
                for s in shares
            ]
            for way in ways
        ]
    return np.pad(np.array(losses) - start, ((0, 0), (1, 0)))


def _ways(victim: Victim, images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Directions away from the images, each of their shape, in the order of `DIRECTIONS`."""
    reading = victim.objective_beyond(labels, cross_entropy)(images, rows, 0, True)
    assert reading.gradient is not None
    return reading.gradient, victim.random(rows).normal("surface", tuple(images.shape[1:]))


def _loss(victim: Victim, x: Tensor, labels: Tensor, rows: Tensor) -> float:
    logits = victim.logits(x, rows, Query()).mean(1)
    return float(cross_entropy(logits, labels).double().mean())


def surface_table(specs: list[str], made: Floats) -> pd.DataFrame:
    """A row a defense, direction and point: the rise, and the difference to the first defense, with
    intervals over builds.

    Args:
        specs: the defenses.
        made: rises (defenses, builds, directions, points).
    """
    shares = np.linspace(0, 1, made.shape[3])
    return pd.DataFrame(
        [
            {
                "defense": spec,
                "direction": direction,
                "share of eps": float(share),
                **columns("rise", student_mean(made[one, :, way, at])),
                **columns("difference", student_mean(made[one, :, way, at] - made[0, :, way, at])),
            }
            for one, spec in enumerate(specs)
            for way, direction in enumerate(DIRECTIONS)
            for at, share in enumerate(shares)
            if at
        ]
    )


def sentence(table: pd.DataFrame) -> str:
    """The rises at the rim, and by how much the others' differ from the first's."""
    rim = table[table["share of eps"] == 1].to_dict("records")
    names = short_names(list(dict.fromkeys(table["defense"])))
    said = []
    for row in rim:
        first = row["defense"] == rim[0]["defense"]
        apart = "" if first else f" ({shown(row, 'difference')} to the first)"
        said.append(f"{names[row['defense']]}, {row['direction']}: {shown(row, 'rise')}{apart}")
    return f"From the image to the rim of the ball the loss rises, in nats, by {'; '.join(said)}."


def surface_figure(table: pd.DataFrame) -> Figure:
    """The loss along both ways, a line a defense."""
    names = short_names(list(dict.fromkeys(table["defense"])))
    figure, panels = plots.panels(
        "Rise of the loss from the image to the rim of the ball (95 % intervals over builds)",
        [("share of eps", "nats", direction) for direction in DIRECTIONS],
    )
    for axes, direction in zip(panels, DIRECTIONS, strict=True):
        for number, (spec, name) in enumerate(names.items()):
            chosen = table[(table["defense"] == spec) & (table["direction"] == direction)]
            at, rise = chosen["share of eps"], chosen["rise"]
            colour = plots.COLOURS[number % len(plots.COLOURS)]
            axes.plot(at, rise, "o-", color=colour, label=plots.wrapped(name))
            axes.fill_between(
                at, chosen["rise_low"], chosen["rise_high"], color=colour, alpha=0.2, linewidth=0
            )
        plots.legend(axes, loc="best")
    return figure
