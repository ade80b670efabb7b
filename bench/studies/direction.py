"""The study `direction`: does purification change an image in one direction, or in another one with
each draw?

Liu and Wei 2025, arXiv 2505.22839, report the correlation of changes under one noise and across
draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bench.errors import BadInput
from bench.randomness import Query
from bench.results.intervals import student_mean
from bench.studies import plots
from bench.studies.deployed import (
    DefensesParams,
    DefenseStudy,
    Deployed,
    check_linf,
    columns,
    deploy,
    shown,
)
from bench.studies.study import StudyResult, StudySetting
from bench.victim import Victim, frozen

SAME, ACROSS, CONTROL = "fixed noise", "other draws", "perturbations"
"""Changes of one image that are compared: of other perturbations under one fixed noise, of no
perturbation under other draws, and, as a control, the perturbations themselves.
"""


class DirectionParams(DefensesParams):
    points: int = Field(
        100,
        ge=2,
        le=10_000,
        description="changes of an image whose directions are compared, pair by pair",
    )


class Direction(DefenseStudy[DirectionParams]):
    """Do the changes that a purifying defense makes to an image agree in direction, under one fixed
    noise and across draws?

    A change is P(x + d) - x, P(x) the purified and x the clean image. Under fixed noise, d is
    uniform in the Linf ball of radius eps, not clipped to [0, 1]; across draws, d is 0 and each
    change has noise of its own. The value of an image is the mean of Pearson's correlation, or of
    the cosine, over all pairs of changes (Liu and Wei 2025, arXiv 2505.22839). As a control, that
    of the d.
    """

    Params = DirectionParams
    default_n = 50

    def run(self, setting: StudySetting) -> StudyResult:
        eps = check_linf(setting)
        images = pd.DataFrame(
            [
                row
                for defense in _random(setting, self.params)
                for row in _rows(defense, eps, self.params.points)
            ]
        )
        table = summary(images)
        return StudyResult(
            tables={"directions": table, "images": images},
            figures={"directions": directions_figure(images, table)},
            sentence=sentence(table),
            scale=f"{len(setting.setup.images)} images, {self.params.points} changes of each",
        )


def _random(setting: StudySetting, params: DirectionParams) -> list[Deployed]:
    deployed = deploy(setting, params.defenses, ["purified"])
    for defense in deployed:
        if not defense.classifier.stochastic:
            raise BadInput(
                f"defense {defense.spec!r} draws no random numbers, so there are no other draws to "
                "compare: leave it out"
            )
    return deployed


def _rows(defense: Deployed, eps: float, points: int) -> Iterator[dict[str, object]]:
    defense.setting.progress(
        f"{defense.spec}: {len(defense.images)} images, {2 * points} purifications each"
    )
    one_noise, many_noises = defense.victim("replay"), defense.victim("replay-set", points)
    with frozen(defense.classifier):
        for row, image in zip(defense.rows, defense.images, strict=True):
            moves = perturbations(one_noise, row, image, points, eps)
            compared = {
                SAME: under_fixed_noise(one_noise, row, image + moves) - image,
                ACROSS: across_draws(many_noises, row, image) - image,
                CONTROL: moves,
            }
            for kind, vectors in compared.items():
                yield {
                    "defense": defense.spec,
                    "image": _id(defense, row),
                    "compared": kind,
                    **agreement(vectors.flatten(1).cpu().numpy()),
                }


def _id(defense: Deployed, row: Tensor) -> int:
    return int(defense.setup.images.ids[int(row)])


def perturbations(victim: Victim, row: Tensor, image: Tensor, points: int, eps: float) -> Tensor:
    """Points (points, C, H, W), uniform in the Linf ball around 0; `row` is the image's number."""
    uniform = victim.random(row.reshape(1)).uniform("direction", (points, *image.shape))[0]
    return eps * (2 * uniform - 1)


def under_fixed_noise(victim: Victim, row: Tensor, x: Tensor) -> Tensor:
    """Variants x (m, C, H, W) of one image, purified under the noise that replay gives it."""
    return victim.logits(x, row.expand(len(x)), Query(), "purified")[:, 0]


def across_draws(victim: Victim, row: Tensor, image: Tensor) -> Tensor:
    """One image (C, H, W), purified under each noise of a replay set, (draws, C, H, W)."""
    return victim.logits(image[None], row.reshape(1), Query(), "purified")[0]


def agreement(vectors: npt.NDArray[np.floating]) -> dict[str, float]:
    """Mean over all pairs of rows (m, d), m at least 2, of Pearson's correlation and of the cosine;
    NaN where a row is constant.
    """
    rows = vectors.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = rows - rows.mean(1, keepdims=True)
        return {"pearson": _mean_cosine(centred), "cosine": _mean_cosine(rows)}


def _mean_cosine(rows: npt.NDArray[np.float64]) -> float:
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    m = len(rows)
    # |sum of units|^2 = m + 2 * sum over pairs of their cosine.
    return float((np.square(units.sum(0)).sum() - m) / (m * (m - 1)))


def summary(images: pd.DataFrame) -> pd.DataFrame:
    """Means over images with 95 % intervals, by defense and by what was compared."""
    rows = []
    for (defense, kind), group in images.groupby(["defense", "compared"], sort=False):
        row: dict[str, object] = {
            "defense": defense,
            "compared": kind,
            "images": int(group["pearson"].notna().sum()),
        }
        for measure in ("pearson", "cosine"):
            row |= columns(measure, student_mean(group[measure].to_numpy()))
        rows.append(row)
    return pd.DataFrame(rows)


def sentence(table: pd.DataFrame) -> str:
    """The correlations of each defense, and the control's."""
    correlations = [
        f" that {defense} makes to an image correlate {_of(table, defense, ACROSS)} across draws, "
        f"{_of(table, defense, SAME)} under fixed noise"
        for defense in table["defense"].unique()
    ]
    control = table[table["compared"] == CONTROL]["pearson"].abs().max()
    return (
        "The changes"
        + "; the changes".join(correlations)
        + f"; the perturbations themselves {control:.3f} at most (Pearson, mean over images)."
    )


def _of(table: pd.DataFrame, defense: str, kind: str) -> str:
    (row,) = table[(table["defense"] == defense) & (table["compared"] == kind)].to_dict("records")
    return shown(row, "pearson")


def directions_figure(images: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Each image's correlation as a dot, the means with their intervals beside them."""
    figure, axes = plots.axes(
        "How far the changes that a defense makes to one image agree in direction",
        "",
        "Pearson correlation of changes, mean over pairs",
    )
    places = {defense: place for place, defense in enumerate(table["defense"].unique())}
    for shift, (kind, colour) in enumerate(
        zip((CONTROL, ACROSS, SAME), (plots.COLOURS[-1], *plots.COLOURS), strict=False)
    ):
        dots, means = images[images["compared"] == kind], table[table["compared"] == kind]
        offset = 0.24 * (shift - 1)
        at = (
            dots["defense"].map(places).to_numpy()
            + offset
            - 0.04
            + 0.04 * np.sin(np.arange(len(dots)) * 2.4)
        )
        axes.plot(at, dots["pearson"], "o", markersize=3, alpha=0.35, color=colour)
        bars = [means["pearson"] - means["pearson_low"], means["pearson_high"] - means["pearson"]]
        where = means["defense"].map(places).to_numpy() + offset + 0.06
        axes.errorbar(
            where,
            means["pearson"],
            bars,
            fmt="s",
            markersize=6,
            capsize=4,
            color=colour,
            label=_LABELS[kind],
        )
    axes.set_xticks(list(places.values()), list(places))
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylim(min(-0.05, images["pearson"].min() - 0.02), 1.04)
    plots.legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


_LABELS = {
    SAME: "other perturbation,\nfixed noise",
    ACROSS: "no perturbation,\nother draw",
    CONTROL: "the perturbations\nthemselves",
}
