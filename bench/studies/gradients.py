"""The study `gradients`: what the gradients of a purifying defense have in common, and how many
draws an attack must average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bench.losses import cross_entropy
from bench.results.intervals import student_mean
from bench.spec import Integers
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
from bench.victim import frozen

ENOUGH = 0.9
"""The agreement of two averages from which on more draws are not needed."""

FIXED, EOT = "fixed noise", "independent draws"
"""What is compared: two backward passes under one fixed noise; two averages over draws."""

_COMPARED = 4
"""Draws on which each backward pass is compared with the exact one."""


class GradientsParams(DefensesParams):
    draws: Integers = Field(
        (1, 2, 4, 8, 16), min_length=1, description="draws k that an attack averages, joined by +"
    )


@dataclass(frozen=True)
class Pair:
    """Two gradients of each image, compared.

    Attributes:
        kind: `FIXED` (one draw, two backward passes) or `EOT` (the exact backward pass, two
            averages of independent draws).
        gradient: the backward pass that is compared with `full`.
        k: draws that each average has.
        cosine, signs: of each image: the cosine, NaN where a gradient is zero, and the share of
            pixels whose signs agree.
        zero: whether the first gradient is zero, as a share of an image's draws.
    """

    kind: str
    gradient: str
    k: int
    cosine: Tensor
    signs: Tensor
    zero: Tensor


class Gradients(DefenseStudy[GradientsParams]):
    """How far do a purifying defense's gradients agree: with those of its surrogates, from draw to
    draw, and averaged over k draws?

    Cosines of the input gradients of the true label's cross-entropy at x +- eps / 2, signs at
    random, clipped to [0, 1]. Under fixed noise each backward pass that the defense offers is
    compared with the exact one, `full`; over draws the mean of k gradients with the mean of k
    others, rho_EOT(k). A small rho_EOT(1) says that the noise masks single gradients; an attack on
    fresh draws needs the k with which it reaches 0.9.
    """

    Params = GradientsParams
    default_n = 50

    def run(self, setting: StudySetting) -> StudyResult:
        eps = check_linf(setting)
        deployed = deploy(setting, self.params.defenses)
        images = pd.concat(
            [_frame(defense, compare(defense, eps, self.params.draws)) for defense in deployed],
            ignore_index=True,
        )
        table = summary(images)
        return StudyResult(
            tables={"gradients": table, "images": images},
            figures={"gradients": gradients_figure(table)},
            sentence=sentence(table),
            scale=f"{len(setting.setup.images)} images, {2 * max(self.params.draws)} draws of each",
        )


def compare(defense: Deployed, eps: float, draws: tuple[int, ...]) -> Iterator[Pair]:
    """All pairs of a defense: each backward pass under fixed noise, then each number of draws."""
    x = random_signs(defense, eps)
    most = max(draws) if defense.classifier.stochastic else 1
    defense.setting.progress(f"{defense.spec}: {2 * most} gradients of {len(x)} images")
    with frozen(defense.classifier):
        full = torch.stack([input_gradient(defense, x, "full", draw) for draw in range(2 * most)])
        for gradient in (name for name in defense.classifier.gradients if name != "full"):
            others = torch.stack(
                [
                    input_gradient(defense, x, gradient, draw)
                    for draw in range(min(_COMPARED, 2 * most))
                ]
            )
            yield pair_of(FIXED, gradient, 1, others, full[: len(others)])
    for k in sorted({k for k in draws if k <= most}):
        yield pair_of(EOT, "full", k, averages(full[:most], k), averages(full[most:], k))


def random_signs(defense: Deployed, eps: float) -> Tensor:
    """x +- eps / 2 with random signs, clipped to [0, 1]."""
    uniform = (
        defense.victim().random(defense.rows).uniform("signs", tuple(defense.images.shape[1:]))
    )
    signs = torch.where(uniform < 0.5, -1.0, 1.0)
    return (defense.images + eps / 2 * signs).clamp(0, 1)


def input_gradient(defense: Deployed, x: Tensor, gradient: str, draw: int) -> Tensor:
    """The gradient of the true label's cross-entropy on one draw, the same one for every
    `gradient`; (n, C, H, W).
    """
    reading = defense.victim(gradient=gradient).objective(defense.labels, cross_entropy)(
        x, defense.rows, draw, True
    )
    assert reading.gradient is not None
    return reading.gradient


def averages(gradients: Tensor, k: int) -> Tensor:
    """Means over blocks of k draws, as many as there are whole ones: (draws, n, ...) to (draws //
    k, n, ...).
    """
    blocks = len(gradients) // k
    return gradients[: blocks * k].reshape(blocks, k, *gradients.shape[1:]).mean(1)


def pair_of(kind: str, gradient: str, k: int, first: Tensor, second: Tensor) -> Pair:
    """Compare gradients (draws, n, C, H, W) draw by draw; the mean over draws is each image's
    value.
    """
    a, b = first.flatten(2).double(), second.flatten(2).double()
    lengths = a.norm(dim=2) * b.norm(dim=2)
    cosine = torch.where(lengths > 0, (a * b).sum(2) / lengths, torch.nan)
    signs = (a.sign() == b.sign()).double().mean(2)
    zero = (a.norm(dim=2) == 0).double()
    return Pair(kind, gradient, k, cosine.nanmean(0), signs.mean(0), zero.mean(0))


def _frame(defense: Deployed, pairs: Iterator[Pair]) -> pd.DataFrame:
    ids = defense.setup.images.ids
    tables = []
    for pair in pairs:
        about = {
            "defense": defense.spec,
            "image": ids,
            "compared": pair.kind,
            "gradient": pair.gradient,
            "k": pair.k,
        }
        values = {"cosine": pair.cosine, "signs": pair.signs, "zero": pair.zero}
        tables.append(
            pd.DataFrame({**about, **{name: value.cpu().numpy() for name, value in values.items()}})
        )
    return pd.concat(tables, ignore_index=True)


# What is shown ------------------------------------------------------------------------------------


def summary(images: pd.DataFrame) -> pd.DataFrame:
    """Means over images with 95 % intervals, by defense and pair of gradients; `zero`: the share of
    gradients that are zero.
    """
    rows = []
    for key, group in images.groupby(["defense", "compared", "gradient", "k"], sort=False):
        about = dict(zip(("defense", "compared", "gradient", "k"), key, strict=True))
        cosine, signs = (student_mean(group[name].to_numpy()) for name in ("cosine", "signs"))
        rows.append(
            about
            | columns("cosine", cosine)
            | columns("signs", signs)
            | {"zero": group["zero"].mean(), "images": int(group["cosine"].notna().sum())}
        )
    return pd.DataFrame(rows)


def enough(table: pd.DataFrame, defense: str) -> int | None:
    """The smallest k whose averages agree by 0.9; None where none does."""
    rows = table[
        (table["defense"] == defense) & (table["compared"] == EOT) & (table["cosine"] >= ENOUGH)
    ]
    return int(rows["k"].min()) if len(rows) else None


def sentence(table: pd.DataFrame) -> str:
    """What each defense's gradients have in common."""
    return "; ".join(_about(table, str(defense)) for defense in table["defense"].unique()) + "."


def _about(table: pd.DataFrame, defense: str) -> str:
    rows = table[table["defense"] == defense]
    averaged = rows[rows["compared"] == EOT]
    fixed_noise = ", ".join(
        f"{row.gradient} {row.cosine:.2f}" for row in rows[rows["compared"] == FIXED].itertuples()
    )
    most, k = averaged.iloc[-1], enough(table, defense)
    need = (
        f"{k} draws reach {ENOUGH}"
        if k
        else f"{most['k']} draws reach {most['cosine']:.2f}, none {ENOUGH}"
    )
    return (
        f"gradients of {defense} agree from draw to draw by a cosine of "
        f"{shown(averaged.iloc[0], 'cosine')} ({need}), "
        f"under fixed noise with {fixed_noise or 'no other'}"
    )


def gradients_figure(table: pd.DataFrame) -> Figure:
    """Cosines under fixed noise as bars, and over k draws as curves."""
    figure, (left, right) = plots.panels(
        "What a defense's gradients have in common: with their surrogates under fixed noise, and "
        "with themselves on other draws",
        [
            ("backward pass", "cosine to the exact gradient", "fixed noise"),
            ("draws k in each average", "cosine of two averages", "other draws"),
        ],
    )
    for place, defense in enumerate(table["defense"].unique()):
        rows = table[table["defense"] == defense]
        _bars(left, rows[rows["compared"] == FIXED], place, table["defense"].nunique())
        _curve(right, rows[rows["compared"] == EOT], place, str(defense))
    right.axhline(ENOUGH, color=plots.COLOURS[-1], linestyle=":", label=f"{ENOUGH}")
    right.set_xscale("log", base=2)
    draws = sorted(table["k"].unique())
    right.set_xticks(draws, [str(k) for k in draws])
    right.minorticks_off()
    for axes in (left, right):
        axes.set_ylim(min(0.0, table["cosine_low"].min() - 0.02), 1.03)
    plots.legend(right, loc="lower right")
    return figure


def _bars(axes: Axes, rows: pd.DataFrame, place: int, count: int) -> None:
    width = 0.8 / count
    at = np.arange(len(rows)) + (place - (count - 1) / 2) * width
    axes.bar(
        at,
        rows["cosine"],
        width,
        yerr=_errors(rows),
        capsize=4,
        color=plots.COLOURS[place % len(plots.COLOURS)],
    )
    axes.set_xticks(range(len(rows)), list(rows["gradient"]))


def _curve(axes: Axes, rows: pd.DataFrame, place: int, label: str) -> None:
    colour = plots.COLOURS[place % len(plots.COLOURS)]
    axes.errorbar(
        rows["k"], rows["cosine"], _errors(rows), fmt="o-", capsize=4, color=colour, label=label
    )


def _errors(rows: pd.DataFrame) -> list[pd.Series]:
    return [rows["cosine"] - rows["cosine_low"], rows["cosine_high"] - rows["cosine"]]
