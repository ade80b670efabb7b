"""The study `diversity`: how much of the real images' variety do synthetic images have?"""

from __future__ import annotations

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bench.results.intervals import wilson
from bench.studies import plots, sets
from bench.studies.deployed import columns, shown
from bench.studies.sets import Floats
from bench.studies.study import StudyResult, StudySetting
from bench.studies.synthetic import (
    ComparedParams,
    ComparedStudy,
    Embedding,
    embedded,
    make,
    short_names,
    training_points,
)

_TEST = "test images"
_SHOWN = 600
"""Points of a set that the figure draws."""


class DiversityParams(ComparedParams):
    embedding: Embedding = Field(
        "features", description="the classifier's features before its last layer, or pixels"
    )
    k: int = Field(
        5, ge=1, le=100, description="neighbour that gives the radius of coverage and recall"
    )
    bins: int = Field(
        100, ge=2, le=10_000, description="bins of NDB and JSD: k-means on the training images"
    )


class Diversity(ComparedStudy[DiversityParams]):
    """How much of the training images' variety do the images have that a defense makes itself?

    Coverage and recall over k-NN balls, NDB and JSD over k-means bins of the training images, and
    how much each set varies by itself: the residual of k-means with one centre a class, and the
    variance within a mixture of as many normal distributions. Test images are the row to compare
    with. Real images are looked at here only, and choose nothing.
    """

    Params = DiversityParams

    def run(self, setting: StudySetting) -> StudyResult:
        params, setup = self.params, setting.setup
        real, _ = training_points(setting, params.n_real, params.embedding)
        available = {
            made.defense: (made.images, made.labels) for made in make(setting, params.defenses)
        }
        available[_TEST] = (setup.images.pixels(), setup.images.labels)
        # More points cover more, so each set has as many.
        size = min(len(images) for images, _ in available.values())
        chosen = {
            name: (images[_spread(images, size)], labels[_spread(labels, size)])
            for name, (images, labels) in available.items()
        }
        points = {
            name: embedded(setting, images, params.embedding)
            for name, (images, _) in chosen.items()
        }
        classes = setup.dataset.plugin.num_classes
        table = pd.DataFrame(
            [
                {"images": name, **measures(real, made, params, classes, setting.seed)}
                for name, made in points.items()
            ]
        )
        return StudyResult(
            tables={"diversity": table},
            figures={
                "map": map_figure(
                    real, points, {name: labels for name, (_, labels) in chosen.items()}
                )
            },
            sentence=sentence(table, params),
            scale=f"{len(real)} training images",
        )


def _spread(rows: Tensor, size: int) -> Tensor:
    """The positions of so many rows, evenly from first to last: classes may come one after the
    other.
    """
    return torch.linspace(0, len(rows) - 1, size).round().long()


def measures(
    real: Floats, made: Floats, params: DiversityParams, classes: int, seed: int
) -> dict[str, float]:
    """All metrics of a set of points (m, d), compared with training points (n, d)."""
    covered, recalled = sets.coverage(real, made, params.k), sets.recall(real, made, params.k)
    centres = sets.k_means(real, min(params.bins, len(real)), seed)
    bins = sets.compare_bins(sets.binned(real, centres), sets.binned(made, centres), len(centres))
    return {
        "n": len(made),
        **columns("coverage", wilson(int(covered.sum()), len(covered))),
        **columns("recall", wilson(int(recalled.sum()), len(recalled))),
        "ndb": bins.different,
        "jsd": bins.divergence,
        "residual": sets.residual(made, min(classes, len(made)), seed),
        "variance": sets.mixture_variance(made, min(classes, len(made)), seed),
    }


def sentence(table: pd.DataFrame, params: DiversityParams) -> str:
    """Coverage and recall of each set."""
    names = _names(list(table["images"]))
    rows = [
        f"{names[row['images']]} cover {shown(row, 'coverage')} and recall {shown(row, 'recall')}"
        for row in table.to_dict("records")
    ]
    return f"Of the training images ({params.embedding}, k = {params.k}), {'; '.join(rows)}."


def _names(images: list[str]) -> dict[str, str]:
    return {_TEST: _TEST, **short_names([name for name in images if name != _TEST])}


def map_figure(real: Floats, points: dict[str, Floats], labels: dict[str, Tensor]) -> Figure:
    """Each set over the training images (grey), on the training images' first two principal
    components; colours are classes.
    """
    mean, directions = sets.principal(real)
    title = (
        "Images on the first two principal components of the training images (grey); colours "
        "are classes"
    )
    names = _names(list(points))
    figure, axes = plots.panels(
        title, [("first component", "second component", names[name]) for name in points]
    )
    back = (real - mean) @ directions
    for panel, (name, made) in zip(axes, points.items(), strict=True):
        chosen = _spread(labels[name], min(_SHOWN, len(made)))
        spots = (made[chosen.numpy()] - mean) @ directions
        colours = [plots.COLOURS[int(label) % len(plots.COLOURS)] for label in labels[name][chosen]]
        panel.scatter(back[:, 0], back[:, 1], s=5, color="#bbbbbb", linewidths=0)
        panel.scatter(spots[:, 0], spots[:, 1], s=9, c=colours, linewidths=0)
    return figure
