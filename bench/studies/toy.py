"""The study `toy`: points in a plane out of a classifier, with fixed coefficients and with drawn
ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, nn

from bench.defense import DataAccess
from bench.models.classifier import Classifier
from bench.models.recipes import Recipe
from bench.models.training import fit
from bench.noise import BuildNoise, Noise, Stream, isolated
from bench.plugins.create import DEFENSES, create
from bench.spec import Specs, parse
from bench.studies import plots, sets
from bench.studies.deployed import DefenseStudy
from bench.studies.sets import Floats
from bench.studies.study import StudyResult, StudySetting
from bench.studies.synthetic import MadeParams, check_maker, short_names
from bench.threat import ThreatModel

REAL = 2_000
SPREAD = 0.1
NEIGHBOURS = 5
_WIDTH = 6.0
_MIDDLE = (0.5, 0.25)
_TRAINING = Recipe(epochs=30, batch=100, rate=0.05, shift=0)
_SAME = (
    "images=2048,synthesis_batch=128,iterations=500,targets=per_batch,space=normalised,keep=last"
)


class ToyParams(MadeParams):
    defenses: Specs = Field(
        (f"datafreeshield:{_SAME},coefficients=fixed", f"datafreeshield:{_SAME},coefficients=dss"),
        min_length=1,
        description="defenses that train on images of their own making, joined by +, in "
        "parentheses where they hold commas",
    )
    repeats: int = Field(
        4, ge=1, le=100, description="data sets, each with a classifier and images of its own"
    )


class Toy(DefenseStudy[ToyParams]):
    """Two moons: do drawn coefficients spread synthetic points further than fixed ones?

    A small network with BatchNorm learns two moons; a point is an image of one pixel with two
    channels, so total variation and jitter do nothing. Counted are the points that the classifier
    gives to the other class than they aim at, how far real points are from the nearest synthetic
    one, and coverage (k = 5).
    """

    Params = ToyParams
    uses = frozenset({"seed"})

    def run(self, setting: StudySetting) -> StudyResult:
        scenes = []
        for repeat in range(self.params.repeats):
            setting.progress(f"data set {repeat + 1} of {self.params.repeats}")
            scenes += scenes_of(self.params, setting.seed, repeat)
        table = pd.DataFrame([scene.row() for scene in scenes])
        means = table.drop(columns="repeat").groupby("defense", sort=False).mean().reset_index()
        return StudyResult(
            tables={"toy": means, "repeats": table},
            figures={"points": points_figure(scenes[: len(self.params.defenses)])},
            sentence=sentence(means, self.params.repeats),
            scale=f"{self.params.repeats} data sets of {REAL} points",
        )


@dataclass(frozen=True)
class Scene:
    """A defense's points on one data set.

    Attributes:
        points, labels: synthetic ones (m, 2) in the unit square and the classes (m,) that they aim
            at.
        answers: the classifier's classes (m,).
        real: the data (n, 2).
        classifier: that they came out of.
    """

    defense: str
    repeat: int
    points: Floats
    labels: Tensor
    answers: Tensor
    real: Floats
    classifier: Classifier

    def row(self) -> dict[str, object]:
        """What is counted; lengths in units of the moons' radius."""
        wrong = (self.answers != self.labels).numpy()
        counts = {
            f"wrong_{label}": int(wrong[self.labels.numpy() == label].sum()) for label in (0, 1)
        }
        return {
            "defense": self.defense,
            "repeat": self.repeat,
            **counts,
            "of": len(wrong) // 2,
            "distance": _WIDTH * float(sets.nearest(self.real, self.points).mean()),
            "coverage": float(sets.coverage(self.real, self.points, NEIGHBOURS).mean()),
        }


def scenes_of(params: ToyParams, seed: int, repeat: int) -> list[Scene]:
    """The points of each defense on one data set."""
    noise = BuildNoise(seed, repeat)
    real, labels = moons(noise)
    classifier = learned(real, labels, noise)
    flat = real.flatten(1).double().numpy()
    scenes = []
    for spec in params.defenses:
        named = create(DEFENSES, parse(spec))
        access = DataAccess(
            frozenset(), {}, named.name, ThreatModel("linf", 0.05), tuple(real.shape[1:])
        )
        root = BuildNoise(noise.seed("defense"))
        images, aims = check_maker(named.plugin, named.spec).training_images(
            classifier, access, root
        )
        answers = answers_of(classifier, images)
        scenes.append(
            Scene(
                named.spec,
                repeat,
                images.flatten(1).double().numpy(),
                aims,
                answers,
                flat,
                classifier,
            )
        )
    return scenes


def moons(noise: Noise) -> tuple[Tensor, Tensor]:
    """Two half circles of radius 1 that reach into each other, with normal noise of scale 0.1, in
    the middle of the unit square.

    Points (2000, 2, 1, 1), one sixth of their size, and labels (2000,).
    """
    labels = torch.arange(REAL) % 2
    angle = math.pi * noise.uniform("angle", (REAL,))[0]
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    points = (
        torch.where(labels[:, None] == 0, upper, lower)
        + SPREAD * noise.normal("spread", (REAL, 2))[0]
    )
    return ((points - torch.tensor(_MIDDLE)) / _WIDTH + 0.5)[:, :, None, None], labels


def learned(real: Tensor, labels: Tensor, noise: BuildNoise) -> Classifier:
    """A network 2-64-64-2 with BatchNorm, trained on the points."""
    with isolated(noise.seed("network")):
        hidden = [
            layer
            for width in (2, 64)
            for layer in (nn.Linear(width, 64), nn.BatchNorm1d(64), nn.ReLU())
        ]
        network = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 2))
    mean, std = real.mean((0, 2, 3)).tolist(), real.std((0, 2, 3)).tolist()
    classifier = Classifier(network, 2, mean=mean, std=std)
    fit(classifier, real, labels, _TRAINING, seed=noise.seed("training"))
    return classifier


def answers_of(classifier: Classifier, points: Tensor) -> Tensor:
    """The classifier's classes (n,) of points (n, 2, 1, 1)."""
    with torch.no_grad():
        logits: Tensor = classifier(points, Noise.of(0, Stream.EVAL, range(len(points))))
    return logits.argmax(1)


# What is shown ------------------------------------------------------------------------------------


def sentence(means: pd.DataFrame, repeats: int) -> str:
    """Means over the data sets."""
    names = short_names(list(means["defense"]))
    counts = [
        f"{names[row['defense']]}: {row['wrong_0']:.0f} and {row['wrong_1']:.0f} of "
        f"{row['of']:.0f} points a class in the wrong region, coverage {row['coverage']:.3f}, real "
        f"points {row['distance']:.2f} from the nearest"
        for row in means.to_dict("records")
    ]
    return f"Means over {repeats} data sets: {'; '.join(counts)}."


def points_figure(scenes: list[Scene]) -> Figure:
    """The first data set: real points (grey), synthetic ones by the class that they aim at, over
    the classifier's regions.
    """
    title = "Synthetic points (colour: class aimed at), real ones (grey), the classifier's regions"
    names = short_names([scene.defense for scene in scenes])
    figure, axes = plots.panels(title, [("", "", names[scene.defense]) for scene in scenes])
    for panel, scene in zip(axes, scenes, strict=True):
        _draw(panel, scene)
    return figure


_GRID = 200


def _draw(panel: Axes, scene: Scene) -> None:
    steps = torch.linspace(0, 1, _GRID)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 2, 1, 1)
    regions = answers_of(scene.classifier, grid).reshape(_GRID, _GRID).numpy()
    panel.contourf(
        steps.numpy(),
        steps.numpy(),
        regions,
        levels=[-0.5, 0.5, 1.5],
        colors=plots.COLOURS[:2],
        alpha=0.15,
    )
    panel.scatter(scene.real[:, 0], scene.real[:, 1], s=3, color="#999999", linewidths=0)
    colours = np.array(plots.COLOURS[:2])[scene.labels.numpy()]
    panel.scatter(scene.points[:, 0], scene.points[:, 1], s=5, c=colours, linewidths=0)
    panel.set_aspect("equal")
