"""The study `synthesis`: what do the images look like that a defense makes out of a classifier?"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from bench.studies import plots
from bench.studies.deployed import DefenseStudy, in_batches
from bench.studies.study import StudyResult, StudySetting
from bench.studies.synthetic import Made, MadeParams, make, short_names

_COLUMNS, _MOST_CLASSES = 10, 12


class Synthesis(DefenseStudy[MadeParams]):
    """What do the images look like that a defense makes itself, and does the classifier see in them
    what they aim at?

    The table has the share of images to which the classifier gives the class aimed at, its mean
    probability of it, and the share of pixels at 0 or 1; the figure a few images of each class. No
    real image is looked at.
    """

    Params = MadeParams
    uses = frozenset({"dataset", "classifier", "seed", "device", "batch_size"})

    def run(self, setting: StudySetting) -> StudyResult:
        sets = list(make(setting, self.params.defenses))
        table = pd.DataFrame([row(setting, made) for made in sets])
        names = short_names([made.defense for made in sets])
        shares = [
            f"{100 * entry['as_meant']:.1f} % of {entry['n']} ({names[entry['defense']]})"
            for entry in table.to_dict("records")
        ]
        return StudyResult(
            tables={"synthesis": table},
            figures={"sheet": sheet_figure(sets, names)},
            sentence=f"The classifier gives the class aimed at on {', '.join(shares)}.",
        )


def row(setting: StudySetting, made: Made) -> dict[str, object]:
    """What the classifier says of a set of images."""
    logits = in_batches(setting, setting.setup.classifier, made.images, "synthesis")
    probabilities = logits.softmax(1)
    return {
        "defense": made.defense,
        "n": len(made.images),
        "as_meant": float((probabilities.argmax(1) == made.labels).float().mean()),
        "probability": float(probabilities.gather(1, made.labels[:, None]).mean()),
        "extreme_pixels": float(((made.images == 0) | (made.images == 1)).float().mean()),
    }


def sheet_figure(sets: list[Made], names: dict[str, str]) -> Figure:
    """One panel a defense, one row a class."""
    figure, axes = plots.panels(
        "Images out of the classifier, one row a class",
        [("", "", names[made.defense]) for made in sets],
    )
    for panel, made in zip(axes, sets, strict=True):
        panel.imshow(
            mosaic(made.images, made.labels), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
        )
        panel.set_axis_off()
    return figure


def mosaic(images: Tensor, labels: Tensor) -> Any:
    """Up to 10 images of each of the first 12 classes, evenly from all of them, in one picture (H,
    W) or (H, W, 3).
    """
    strips = []
    for label in labels.unique()[:_MOST_CLASSES]:
        own = images[labels == label]
        framed = F.pad(
            own[torch.linspace(0, len(own) - 1, min(_COLUMNS, len(own))).round().long()],
            (1, 1, 1, 1),
            value=1.0,
        )
        missing = (_COLUMNS - len(framed)) * framed.shape[3]
        strips.append(F.pad(torch.cat(list(framed), 2), (0, missing), value=1.0))
    picture = torch.cat(strips, 1)
    return picture.permute(1, 2, 0).numpy() if len(picture) == 3 else picture[0].numpy()
