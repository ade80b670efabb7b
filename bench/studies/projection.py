"""The study `projection`: what becomes of an adversarial perturbation along the chain of a
purifying defense.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bench.data.similarity import ssim
from bench.defense import Need
from bench.errors import BadInput
from bench.randomness import Query
from bench.results.intervals import student_mean
from bench.studies import plots
from bench.studies.deployed import (
    DefensesParams,
    DefenseStudy,
    Deployed,
    GradientSearch,
    GradientSearchParams,
    columns,
    deploy,
    shown,
)
from bench.studies.study import StudyResult, StudySetting
from bench.victim import frozen

INPUT, NOISING, REVERSE = "input", "noising", "reverse"
"""The stage that led to a state."""

TOLERANCE = 1e-4
"""By how much pi and kappa may miss sqrt(abar) where the chain noises, relative to what they were
before.
"""


class ProjectionParams(DefensesParams):
    gradient: str = Field(
        "full",
        description="gradient of the attack, under the defense's fixed noise; blind: the attack "
        "sees the classifier alone",
    )
    steps: int = Field(10, ge=1, le=10_000, description="gradient steps of the attack")


@dataclass(frozen=True)
class Paths:
    """Two runs of a chain under one fixed noise, from the clean and from the attacked image.

    Attributes:
        stage: the stage that led to each state, (states,).
        time: the time index of each state, -1 for a clean image, int64 (states,).
        level: abar at that index, (states,).
        pi, kappa: along the perturbation, and the whole difference, in units of the perturbation's
            length, float64 (n, states); NaN for an image that the attack left as it was.
        distances: table of distances, one row an image.
    """

    stage: list[str]
    time: npt.NDArray[np.int64]
    level: npt.NDArray[np.float64]
    pi: npt.NDArray[np.float64]
    kappa: npt.NDArray[np.float64]
    distances: pd.DataFrame


class Projection(DefenseStudy[ProjectionParams]):
    """How much of an adversarial perturbation is left at each state of a purifying chain, and in
    which direction it points.

    a = z' - z is the perturbation in diffusion space, of PGD under the defense's own fixed noise.
    Both images run through the chain under it; pi(s) = <z'_s - z_s, a> / |a|^2 and kappa(s) =
    |z'_s - z_s| / |a| at every state s, cosine = pi / kappa (Liu and Wei 2025, arXiv 2505.22839).
    Noising must multiply both by sqrt(abar) exactly; exit code 1 where it does not.
    """

    Params = ProjectionParams
    default_n = 100

    def run(self, setting: StudySetting) -> StudyResult:
        deployed = deploy(setting, self.params.defenses, ["purified", "states", "times"])
        paths_of = {defense.spec: follow(defense, self.params) for defense in deployed}
        states = state_table(paths_of)
        distances = distance_table(paths_of)
        checks = [noising_is_exact(paths) for paths in paths_of.values() if NOISING in paths.stage]
        return StudyResult(
            tables={
                "projection": states,
                "distances": distances,
                "images": image_table(paths_of, deployed),
            },
            figures={"projection": projection_figure(states)},
            sentence=sentence(states, distances),
            held=all(checks) if checks else None,
            scale=f"{len(setting.setup.images)} images, PGD with {self.params.steps} steps "
            f"(gradient {self.params.gradient})",
        )


def follow(defense: Deployed, params: ProjectionParams) -> Paths:
    """Attack the defense under its fixed noise, and follow both images through the chain."""
    defense.setting.progress(
        f"{defense.spec}: {params.steps} steps on {len(defense.images)} images"
    )
    victim, chain = defense.victim("replay", gradient=params.gradient), defense.victim("replay")
    with frozen(defense.classifier):
        points = GradientSearch(GradientSearchParams(steps=params.steps))(
            victim, defense.images, defense.labels, defense.setup.threat
        ).points
        clean, attacked = (
            chain.logits(x, defense.rows, Query(), "states")[:, 0].double()
            for x in (defense.images, points)
        )
        times = chain.logits(defense.images[:1], defense.rows[:1], Query(), "times")[0, 0].long()
        purified = [
            chain.logits(x, defense.rows, Query(), "purified")[:, 0]
            for x in (defense.images, points)
        ]
    # z = 2 x - 1, so a pixel's perturbation is twice as large in diffusion space.
    perturbation = 2 * (points.double() - defense.images.double())
    if clean.shape[2:] != perturbation.shape[1:]:
        raise BadInput(
            f"defense {defense.spec!r} resizes its images, so a state cannot be compared with a "
            "perturbation: leave it out"
        )
    pi, kappa = along(attacked - clean, perturbation)
    time = times.cpu().numpy()
    level = np.array([_level(defense, int(index)) for index in time])
    return Paths(
        _stages(time), time, level, pi, kappa, distances(defense.images, points, *purified)
    )


def _level(defense: Deployed, index: int) -> float:
    if index < 0 or Need.GENERATOR not in defense.evaluation.defense.plugin.needs:
        return 1.0 if index < 0 else math.nan
    return defense.evaluation.generator().level(index)


def _stages(time: npt.NDArray[np.int64]) -> list[str]:
    return [INPUT, *(NOISING if after > before else REVERSE for before, after in pairwise(time))]


def along(
    gaps: Tensor, perturbation: Tensor
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """pi and kappa, (n, states) each, of differences (n, states, C, H, W) and perturbations (n, C,
    H, W), float64.
    """
    flat, a = gaps.flatten(2), perturbation.flatten(1)
    # pi(s) = <z'_s - z_s, a> / |a|^2 and kappa(s) = |z'_s - z_s| / |a|.
    squared = a.square().sum(1, keepdim=True)
    pi, kappa = (flat * a[:, None]).sum(2) / squared, flat.norm(dim=2) / squared.sqrt()
    return tuple(torch.where(squared > 0, x, math.nan).cpu().numpy() for x in (pi, kappa))  # type: ignore[return-value]


def noising_is_exact(paths: Paths) -> bool:
    """Whether noising multiplied pi and kappa by sqrt(abar), on every image."""
    places = [s for s, stage in enumerate(paths.stage) if stage == NOISING]
    for s in places:
        for values in (paths.pi, paths.kappa):
            off = values[:, s] - math.sqrt(paths.level[s]) * values[:, s - 1]
            if np.nanmax(np.abs(off), initial=0) > TOLERANCE * np.nanmax(
                paths.kappa[:, s - 1], initial=0
            ):
                return False
    return True


def distances(x: Tensor, points: Tensor, purified: Tensor, purified_points: Tensor) -> pd.DataFrame:
    """L2, Linf and structural similarity to x of x', P(x) and P(x') (n, C, H, W), in pixels of [0,
    1]: one row an image.
    """
    compared = {
        "attacked": points,
        "purified clean": purified,
        "purified attacked": purified_points,
    }
    columns: dict[tuple[str, str], Tensor] = {}
    for name, images in compared.items():
        gap = (images - x).flatten(1)
        likeness = ssim(images, x) if min(x.shape[2:]) >= 7 else torch.full((len(x),), math.nan)
        columns |= {
            (name, "L2"): gap.norm(dim=1),
            (name, "Linf"): gap.abs().amax(1),
            (name, "SSIM"): likeness,
        }
    return pd.DataFrame({key: values.cpu().double().numpy() for key, values in columns.items()})


# What is shown ------------------------------------------------------------------------------------


def state_table(paths_of: dict[str, Paths]) -> pd.DataFrame:
    """Means over images with 95 % intervals, by defense and state."""
    return pd.DataFrame(
        [row for spec, paths in paths_of.items() for row in _state_rows(spec, paths)]
    )


def _state_rows(spec: str, paths: Paths) -> Iterator[dict[str, object]]:
    start = paths.stage.index(REVERSE) - 1
    with np.errstate(invalid="ignore"):
        cosine = paths.pi / paths.kappa
    for s, stage in enumerate(paths.stage):
        pi, kappa, angle = (
            student_mean(values[:, s]) for values in (paths.pi, paths.kappa, cosine)
        )
        about = {
            "defense": spec,
            "step": s - start,
            "stage": stage,
            "time": int(paths.time[s]),
            "sqrt_abar": math.sqrt(paths.level[s]),
        }
        yield (
            about
            | columns("pi", pi)
            | columns("kappa", kappa)
            | columns("cosine", angle)
            | {"images": int((~np.isnan(paths.pi[:, s])).sum())}
        )


def distance_table(paths_of: dict[str, Paths]) -> pd.DataFrame:
    """Mean distances from the clean image with 95 % intervals, by defense and by what is compared
    with it.
    """
    rows = []
    for spec, paths in paths_of.items():
        for what in paths.distances.columns.unique(level=0):
            means = {
                name: student_mean(paths.distances[what, name].to_numpy())
                for name in ("L2", "Linf", "SSIM")
            }
            row: dict[str, object] = {"defense": spec, "image": what}
            for name, mean in means.items():
                row |= columns(name, mean)
            rows.append(row)
    return pd.DataFrame(rows)


def image_table(paths_of: dict[str, Paths], deployed: list[Deployed]) -> pd.DataFrame:
    """pi and kappa of each image at each state."""
    tables = []
    for defense in deployed:
        paths = paths_of[defense.spec]
        n, states = paths.pi.shape
        ids = np.repeat(defense.setup.images.ids, states)
        values = {"pi": paths.pi.ravel(), "kappa": paths.kappa.ravel()}
        tables.append(
            pd.DataFrame(
                {
                    "defense": defense.spec,
                    "image": ids,
                    "state": np.tile(np.arange(states), n),
                    **values,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def sentence(states: pd.DataFrame, distances: pd.DataFrame) -> str:
    """What is left of the perturbation at the end of each chain."""
    text = "; ".join(
        _about(
            str(defense), group, distances[distances["defense"] == defense].set_index("image")["L2"]
        )
        for defense, group in states.groupby("defense", sort=False)
    )
    return f"{text[:1].upper()}{text[1:]}."


def _about(defense: str, states: pd.DataFrame, distance: pd.Series) -> str:
    start, end = states[states["step"] == 0].iloc[0], states.iloc[-1]
    if not end["images"]:
        return f"behind {defense} the attack moved no image, since all were wrong without it"
    return (
        f"behind {defense} the difference that the attack makes keeps {shown(end, 'kappa')} of "
        f"its length, and {shown(end, 'pi')} along the perturbation (where the chain starts "
        f"{start['pi']:.3f}); the purified attacked image lies {distance['purified attacked']:.2f} "
        f"in L2 from the clean one, unpurified {distance['attacked']:.2f}"
    )


def projection_figure(states: pd.DataFrame) -> Figure:
    """pi and kappa against the step of the chain, by defense, with the intervals of the means."""
    figure, both = plots.panels(
        "What is left of an adversarial perturbation along the chain: noising multiplies it by "
        "sqrt(abar), reverse steps turn it",
        [
            ("reverse steps taken", "share of the perturbation", "pi: along the perturbation"),
            ("reverse steps taken", "", "kappa: length of the whole difference"),
        ],
    )
    for axes, name in zip(both, ("pi", "kappa"), strict=True):
        for (defense, group), colour in zip(
            states.groupby("defense", sort=False), plots.COLOURS, strict=False
        ):
            _curve(axes, group, name, colour, str(defense))
        axes.set_ylim(0, 1.05 * max(1.0, states[["pi_high", "kappa_high"]].max().max()))
    plots.legend(both[0], loc="lower left")
    return figure


def _curve(axes: Axes, group: pd.DataFrame, name: str, colour: str, label: str) -> None:
    steps = group["step"].to_numpy()
    axes.plot(steps, group[name].to_numpy(), "o-", markersize=4, color=colour, label=label)
    axes.fill_between(
        steps,
        group[f"{name}_low"].to_numpy(),
        group[f"{name}_high"].to_numpy(),
        color=colour,
        alpha=0.2,
        linewidth=0,
    )
    noised = group[group["stage"] == NOISING]
    if len(noised):
        steps, means = noised["step"].to_numpy(), noised[name].to_numpy()
        axes.plot(
            steps,
            means,
            "s",
            markersize=9,
            markerfacecolor="none",
            color=colour,
            label="after noising",
        )
