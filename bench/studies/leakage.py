"""The study `leakage`: do synthetic images give away which images a classifier was trained on?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field
from torch.nn import functional as F

from bench.data.dataset import ImageSet
from bench.results.intervals import wilson
from bench.studies import plots, sets
from bench.studies.deployed import in_batches
from bench.studies.sets import Floats
from bench.studies.study import StudyResult, StudySetting
from bench.studies.synthetic import (
    ComparedParams,
    ComparedStudy,
    Embedding,
    embedded,
    make,
    short_names,
)

_CLASSIFIER = "the classifier's loss"


class LeakageParams(ComparedParams):
    embedding: Embedding = Field(
        "pixels", description="pixels, or the classifier's features before its last layer"
    )


class Leakage(ComparedStudy[LeakageParams]):
    """Do images that a defense makes out of a classifier lie nearer to its training images than to
    test images?

    As many training as test images are taken. For each synthetic image: the ratio of its distances
    to the nearest training and to the nearest test image, and whether the training image is the
    nearer one (one half where nothing leaks). For each real image: a membership score, minus its
    distance to the nearest synthetic image; AUC says how often a training image scores higher (0.5
    where nothing leaks). The classifier's own loss gives the AUC to compare with: what it betrays
    without any synthetic image.
    """

    Params = LeakageParams

    def run(self, setting: StudySetting) -> StudyResult:
        params, test = self.params, setting.setup.images
        train = setting.setup.dataset.plugin.train()
        count = min(len(test), len(train), params.n_real)
        members, others = train.first(count), test.first(count)
        inside, outside = (
            embedded(setting, real.pixels(), params.embedding) for real in (members, others)
        )
        synthetic = {
            made.defense: embedded(setting, made.images, params.embedding)
            for made in make(setting, params.defenses)
        }
        ratios = {
            name: sets.nearest(points, inside) / sets.nearest(points, outside).clip(1e-12)
            for name, points in synthetic.items()
        }
        scores = {
            name: (-sets.nearest(inside, points), -sets.nearest(outside, points))
            for name, points in synthetic.items()
        }
        scores[_CLASSIFIER] = _confidence(setting, members), _confidence(setting, others)
        table = pd.DataFrame([distance_row(name, ratio) for name, ratio in ratios.items()])
        membership = pd.DataFrame(
            [membership_row(name, *both, setting.seed) for name, both in scores.items()]
        )
        return StudyResult(
            tables={"membership": membership, "distances": table},
            figures={"ratios": ratio_figure(ratios)},
            sentence=sentence(membership, table),
            scale=f"{count} training and {count} test images",
        )


def _confidence(setting: StudySetting, images: ImageSet) -> Floats:
    """Minus the classifier's cross-entropy on each image."""
    logits = in_batches(setting, setting.setup.classifier, images.pixels(), "confidence")
    losses: Floats = F.cross_entropy(logits.double(), images.labels, reduction="none").numpy()
    return -losses


def distance_row(name: str, ratios: Floats) -> dict[str, object]:
    """The median ratio of distances, and the share of images that are nearer to training images."""
    nearer = wilson(float((ratios < 1).sum() + 0.5 * (ratios == 1).sum()), len(ratios))
    return {
        "images": name,
        "n": len(ratios),
        "median_ratio": float(np.median(ratios)),
        "nearer_to_training": nearer.value,
        "nearer_low": nearer.low,
        "nearer_high": nearer.high,
    }


def membership_row(name: str, members: Floats, others: Floats, seed: int) -> dict[str, object]:
    """AUC of a membership score with its interval."""
    low, high = sets.area_interval(members, others, seed)
    return {
        "score": name,
        "auc": sets.area_under_curve(members, others),
        "auc_low": low,
        "auc_high": high,
        "n": len(members),
    }


def sentence(membership: pd.DataFrame, distances: pd.DataFrame) -> str:
    """AUC of each score, and on which side the synthetic images lie."""
    names = {_CLASSIFIER: _CLASSIFIER, **short_names(list(distances["images"]))}
    first = [
        f"{names[row['score']]} {row['auc']:.3f} [{row['auc_low']:.3f}, {row['auc_high']:.3f}]"
        for row in membership.to_dict("records")
    ]
    second = [
        f"{row['nearer_to_training']:.3f} [{row['nearer_low']:.3f}, {row['nearer_high']:.3f}] of "
        f"{names[row['images']]}"
        for row in distances.to_dict("records")
    ]
    return (
        f"Membership AUC (0.5: nothing leaks): {'; '.join(first)}. Nearer to a training image "
        f"(0.5): {'; '.join(second)}."
    )


def ratio_figure(ratios: dict[str, Floats]) -> Figure:
    """The ratio of distances of all synthetic images, by rank."""
    figure, axes = plots.axes(
        "Distance to the nearest training image over that to the nearest test image",
        "synthetic image, by rank",
        "ratio",
    )
    names = short_names(list(ratios))
    axes.axhline(1, color=plots.COLOURS[-1], linewidth=1)
    for (name, values), colour in zip(ratios.items(), plots.COLOURS, strict=False):
        axes.plot(np.linspace(0, 1, len(values)), np.sort(values), color=colour, label=names[name])
    plots.legend(axes, loc="upper left")
    return figure
