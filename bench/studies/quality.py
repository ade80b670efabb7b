"""The study `quality`: does a diffusion model that draws better images also purify better?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import Field, model_validator
from torch import Tensor

from bench.diffusion.chain import Sampler, sample
from bench.diffusion.load import load_model
from bench.diffusion.model import DiffusionModel
from bench.engine.fingerprint import fingerprint
from bench.errors import BadInput
from bench.noise import Noise, Stream
from bench.plugins.create import DEFENSES, DIFFUSION_MODELS, create
from bench.results.intervals import wilson
from bench.spec import IfGiven, Params, Spec, Specs, parse, unnest
from bench.studies import plots
from bench.studies.deployed import (
    Deployed,
    GradientSearch,
    GradientSearchParams,
    columns,
    deploy,
    diffusion_model,
    features,
)
from bench.studies.study import Study, StudyResult, StudySetting
from bench.victim import frozen

FEWEST_STEPS = 5
"""A rank correlation over fewer stages of training says nothing."""

FEWEST_SAMPLES = 2_000
"""The Fréchet distance of fewer samples is mostly their bias."""

_WEIGHTS = ("ema", "raw")
_RESAMPLES = 10_000
Floats = npt.NDArray[np.float64]


_SHIPPED = "mnist5k-ddpm"


class QualityParams(Params):
    model: str = Field(
        _SHIPPED,
        description="diffusion model whose earlier weights are kept: the name of a shipped one, or "
        "a spec such as folder:PATH",
    )
    checkpoints: Annotated[Specs, IfGiven()] = Field(
        (),
        description="instead of `model`: diffusion models joined by +, the least trained first, in "
        "parentheses where they hold commas",
    )
    defense: str = Field(
        "diffpure:steps=5",
        description="defense spec with a parameter `model`, which the study sets",
    )
    steps: int = Field(
        10, ge=1, le=10_000, description="gradient steps of the attack under fixed noise"
    )
    samples: int = Field(
        2_000, ge=FEWEST_SAMPLES, le=1_000_000, description="generated images a checkpoint"
    )
    sampling_steps: int = Field(
        10, ge=1, le=1000, description="DDIM steps from pure noise to an image"
    )

    @model_validator(mode="after")
    def _one_series(self) -> QualityParams:
        if self.checkpoints and self.model != _SHIPPED:
            raise ValueError("model and checkpoints both name diffusion models: give one of them")
        return self


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a model at a stage of its training.

    Attributes:
        spec: how to load them.
        step: steps of training; the place in the list, from 1, where models were listed.
        weights: the moving average (`ema`), the last ones themselves (`raw`), or `given`.
    """

    spec: str
    step: int
    weights: str


class Quality(Study[QualityParams]):
    """Does a diffusion model whose samples lie nearer to the real images also make a more robust
    purifier?

    For each checkpoint of a model, moving averages and raw weights where both are kept: the Fréchet
    distance FD of DDIM samples to the training images, on the features before the last layer of the
    suite's own classifier (so it is no FID, and comparable only here); clean accuracy behind the
    defense, and robust accuracy of PGD under fixed noise, both judged under that noise. Spearman's
    rank correlation of FD and robust accuracy has a bootstrap interval over stages of training,
    both weights of a stage together.
    """

    Params = QualityParams
    positional = "model"
    default_n = 100

    def plugins(self) -> dict[str, Any]:
        return {"defense": create(DEFENSES, parse(unnest(self.params.defense))).identity}

    def sources(self, setting: StudySetting) -> dict[str, str]:
        """The checkpoints' weights, and the training images."""
        weights = {
            checkpoint.spec: fingerprint(load_model(checkpoint.spec))
            for checkpoint in checkpoints(self.params)
        }
        return weights | {"training images": setting.setup.dataset.plugin.train().sha256}

    def run(self, setting: StudySetting) -> StudyResult:
        params = self.params
        chosen = checkpoints(params)
        specs = [with_model(params.defense, checkpoint.spec) for checkpoint in chosen]
        deployed = deploy(setting, specs)
        table = pd.DataFrame(list(_rows(setting, params, chosen, deployed)))
        ranks = rank_table(table)
        return StudyResult(
            tables={"quality": table, "ranks": ranks},
            figures={name: quality_figure(table, name) for name in _ACCURACIES},
            sentence=sentence(table, ranks),
            scale=f"{len(setting.setup.images)} images, PGD with {params.steps} steps; "
            f"{params.samples} samples of {params.sampling_steps} DDIM steps",
        )


def checkpoints(params: QualityParams) -> list[Checkpoint]:
    """All weights that are kept of the model, or those that were listed; all stages have the same
    kinds of weights. Raises `BadInput` where they are of fewer than five stages of training.
    """
    if params.checkpoints:
        listed = [create(DIFFUSION_MODELS, parse(text)).spec for text in params.checkpoints]
        _check_stages("checkpoints", len(set(listed)), "list more of them")
        return [Checkpoint(spec, place + 1, "given") for place, spec in enumerate(listed)]
    text = unnest(params.model)
    spec = parse(text if ":" in text else f"zoo:{text}")
    if {"step", "weights"} & set(spec.options):
        raise BadInput(
            f"model={text} names one stage of training, and this study takes all: leave out step "
            "and weights"
        )
    kept = set(create(DIFFUSION_MODELS, spec).plugin.kept())
    steps = sorted({step for step, _ in kept})
    _check_stages(
        str(spec), len(steps), "give checkpoints=(SPEC)+(SPEC)+..., the least trained first"
    )
    whole = [weights for weights in _WEIGHTS if all((step, weights) in kept for step in steps)]
    if not whole:
        raise BadInput(f"{spec} keeps neither ema nor raw weights of all its {len(steps)} steps")
    return [
        Checkpoint(
            str(replace(spec, options={**spec.options, "step": str(step), "weights": weights})),
            step,
            weights,
        )
        for step in steps
        for weights in whole
    ]


def _check_stages(what: str, count: int, advice: str) -> None:
    if count < FEWEST_STEPS:
        raise BadInput(
            f"{what} has weights of {count} stages of training, and a rank correlation needs at "
            f"least {FEWEST_STEPS}: {advice}"
        )


def with_model(defense: str, model: str) -> str:
    """The defense's spec with this diffusion model. Raises `BadInput` where it takes none, or has
    one of its own.
    """
    spec = parse(unnest(defense))
    if "model" in spec.options:
        raise BadInput(
            f"defense {defense!r} names a diffusion model, which this study chooses: leave `model` "
            "out"
        )
    return create(
        DEFENSES, Spec(spec.name, spec.positional, {**spec.options, "model": f"({model})"})
    ).spec


def _rows(
    setting: StudySetting, params: QualityParams, chosen: list[Checkpoint], deployed: list[Deployed]
) -> Iterator[dict[str, object]]:
    train = setting.setup.dataset.plugin.train().pixels()
    real = features(setting, train)
    for checkpoint, defense in zip(chosen, deployed, strict=True):
        setting.progress(
            f"{checkpoint.spec}: {params.samples} samples, attack on {len(defense.images)} images"
        )
        with frozen(defense.classifier):
            distance = frechet(
                features(setting, draw(setting, diffusion_model(defense), params)), real
            )
            yield {
                "step": checkpoint.step,
                "weights": checkpoint.weights,
                "fd": distance,
                **accuracies(defense, params.steps),
            }


def accuracies(defense: Deployed, steps: int) -> dict[str, float]:
    """Clean and robust accuracy under fixed noise with 95 % intervals; robust: right on the clean
    and on the attacked image.
    """
    victim = defense.victim("replay")
    right = victim.verify(defense.images)[:, 0] == defense.labels
    search = GradientSearch(GradientSearchParams(steps=steps))
    attacked = search(victim, defense.images, defense.labels, defense.setup.threat)
    survives = attacked.predictions[:, 0] == defense.labels
    accuracy: dict[str, float] = {}
    for name, correct in (("clean", right), ("robust", right & survives)):
        accuracy |= columns(name, wilson(int(correct.sum()), len(correct)))
    return accuracy


def draw(setting: StudySetting, model: DiffusionModel, params: QualityParams) -> Tensor:
    """Images from pure noise, (samples, C, H, W) in [0, 1], on the CPU; every checkpoint gets the
    same noise.

    `model` lies on the setting's device. Raises `BadInput` where it was not trained on all time
    indices, or draws images of another shape than the classifier's.
    """
    shape = tuple(setting.setup.images.images.shape[1:])
    if tuple(model.shape) != shape:
        raise BadInput(
            f"the diffusion model draws images of shape {tuple(model.shape)}, the data set has "
            f"{shape}: give a model of such images"
        )
    if model.trained_steps < model.steps:
        raise BadInput(
            f"the diffusion model was trained below index {model.trained_steps} only, so it draws "
            "no images: give another"
        )
    ids = np.arange(params.samples)
    batches = []
    for start in range(0, params.samples, setting.batch_size):
        noise = Noise.of(
            setting.seed,
            Stream.EVAL,
            ids[start : start + setting.batch_size],
            device=setting.device,
        ).at("samples")
        batches.append(sample(model, Sampler("ddim"), params.sampling_steps, noise).cpu())
    return ((torch.cat(batches) + 1) / 2).clamp(0, 1)


def frechet(a: Floats, b: Floats) -> float:
    """Fréchet distance of the normal distributions with the means and covariances of two sets of
    features (n, d) and (m, d).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Dowson and Landau 1982); the trace of the root is
    the sum of the roots of the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2), which are those
    of S1 S2.
    """
    from scipy.linalg import eigh, eigvalsh

    gap = a.mean(0) - b.mean(0)
    first, second = (
        np.cov(a, rowvar=False).reshape(len(gap), -1),
        np.cov(b, rowvar=False).reshape(len(gap), -1),
    )
    # Dowson and Landau 1982: tr (S1 S2)^(1/2) by way of S1^(1/2) S2 S1^(1/2).
    values, vectors = eigh(first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    middle = root @ second @ root
    shared = np.sqrt(eigvalsh((middle + middle.T) / 2).clip(min=0)).sum()
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * shared)


# What is shown ------------------------------------------------------------------------------------


def spearman(x: Floats, y: Floats, seed: int = 0) -> dict[str, float]:
    """Spearman's rank correlation of stages (s, m), with the percentile 95 % bootstrap over stages:
    their m members stay together.

    Resamples in which one quantity is all ties have none, and are left out.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = generator.integers(len(x), size=(_RESAMPLES, len(x)))
    low, high = np.nanquantile(_rank_correlations(x[drawn], y[drawn]), (0.025, 0.975))
    return {
        "rho": float(_rank_correlations(x[None], y[None])[0]),
        "low": float(low),
        "high": float(high),
    }


def _rank_correlations(x: Floats, y: Floats) -> Floats:
    """Of each resample (r, s, m); NaN where one of them has no order."""
    from scipy.stats import rankdata

    first, second = (rankdata(values.reshape(len(values), -1), axis=1) for values in (x, y))
    # Pearson's correlation of the ranks.
    first, second = (ranks - ranks.mean(1, keepdims=True) for ranks in (first, second))
    with np.errstate(invalid="ignore"):
        correlations: Floats = (first * second).sum(1) / np.sqrt(
            np.square(first).sum(1) * np.square(second).sum(1)
        )
    return correlations


def rank_table(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlations of FD with both accuracies, and of the training step with all
    three.
    """
    rows, kinds = [], table["weights"].nunique()
    for first, second in (
        ("fd", "robust"),
        ("fd", "clean"),
        ("step", "fd"),
        ("step", "robust"),
        ("step", "clean"),
    ):
        x, y = (table[name].to_numpy(float).reshape(-1, kinds) for name in (first, second))
        rows.append(
            {
                "of": first,
                "and": second,
                **spearman(x, y),
                "checkpoints": len(table),
                "stages": table["step"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def sentence(table: pd.DataFrame, ranks: pd.DataFrame) -> str:
    """The rank correlation, and what the last and the first checkpoints have."""
    rank = ranks.iloc[0]
    last = table[table["step"] == table["step"].max()].set_index("weights")
    ends = [
        f"{weights} FD {row['fd']:.3g}, clean {row['clean']:.2f}, robust {row['robust']:.2f}"
        for weights, row in last.iterrows()
    ]
    listed = "given" in last.index
    where = "the last one" if listed else f"after {last['step'].max()} steps"
    return (
        f"Over {len(table)} checkpoints FD and robust accuracy under replay have Spearman's rho "
        f"{rank['rho']:.2f} [{rank['low']:.2f}, {rank['high']:.2f}] (a smaller FD says better "
        f"samples); {where}: {'; '.join(ends)}."
    )


def quality_figure(table: pd.DataFrame, name: str) -> Figure:
    """`robust` or `clean` accuracy against FD, moving averages and raw weights in two colours, each
    point labelled by its training step.
    """
    figure, axes = plots.axes(
        "Samples and purifier, checkpoint by checkpoint (number: "
        f"{'place in the list' if 'given' in set(table['weights']) else 'steps of training'})",
        "FD of samples to training images",
        _ACCURACIES[name],
    )
    styles = zip(
        table.groupby("weights", sort=False), plots.COLOURS, ("o", "s"), (1, -1), strict=False
    )
    for (weights, group), colour, mark, side in styles:
        bars = [group[name] - group[f"{name}_low"], group[f"{name}_high"] - group[name]]
        axes.errorbar(
            group["fd"],
            group[name],
            bars,
            fmt=mark,
            color=colour,
            elinewidth=0.8,
            alpha=0.85,
            label=str(weights),
        )
        for row in group.to_dict("records"):
            place = (row["fd"], row[name])
            where = "left" if side > 0 else "right"
            axes.annotate(
                str(row["step"]),
                place,
                (6 * side, 5 * side - 3),
                textcoords="offset points",
                color=colour,
                ha=where,
            )
    axes.set_xscale("log")
    axes.margins(x=0.08)
    plots.legend(axes, loc="lower left")
    return figure


_ACCURACIES = {
    "robust": "robust accuracy under replay",
    "clean": "clean accuracy behind the purifier",
}
