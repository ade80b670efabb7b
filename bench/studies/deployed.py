"""What studies of defenses share: defenses built from their specs, a short attack, means with
intervals in tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from bench.attack import Attack
from bench.defense import DefendedClassifier, Forward, Need
from bench.diffusion.model import DiffusionModel
from bench.engine.build import build
from bench.engine.evaluation import Evaluation
from bench.engine.fingerprint import fingerprint
from bench.engine.setup import Setup
from bench.errors import BadInput
from bench.losses import cross_entropy
from bench.maximise import ascend
from bench.noise import Noise, Stream
from bench.plugins.create import DEFENSES, Named, create
from bench.randomness import RandomnessModel
from bench.results.estimate import Estimate
from bench.spec import Params, Specs, parse
from bench.studies.study import IMAGES, Study, StudySetting
from bench.threat import ThreatModel
from bench.victim import Victim


class DefensesParams(Params):
    """Parameters of a study that compares defenses."""

    defenses: Specs = Field(
        ("diffpure", "revpure"),
        min_length=1,
        description="defense specs joined by +, in parentheses where they hold commas: "
        "diffpure+(revpure:t=100,steps=5)",
    )


class GradientSearchParams(Params):
    steps: int = Field(ge=1, le=10_000, description="gradient steps of the attack")


class GradientSearch(Attack[GradientSearchParams]):
    """PGD without a random start (Madry et al. 2018): ascent of the
    cross-entropy from the image itself, projected on the ball, with steps of 2.5 eps / steps.
    """

    def run(self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        """Each image's first success, else its point of largest loss."""
        steps = self.params.steps
        objective = victim.objective(labels, cross_entropy)
        return ascend(
            objective, images, images, threat, steps=steps, size=2.5 * threat.eps / steps
        ).points


@dataclass(frozen=True)
class Deployed:
    """A defense in front of the evaluation setup's classifier.

    Attributes:
        evaluation: what it was built from.
        classifier: on the setting's device.
        images, labels: the setup's, (n, C, H, W) in [0, 1] and (n,), on the device.
    """

    setting: StudySetting
    evaluation: Evaluation
    classifier: DefendedClassifier
    images: Tensor
    labels: Tensor

    @property
    def spec(self) -> str:
        return self.evaluation.defense.spec

    @property
    def setup(self) -> Setup:
        return self.evaluation.setup

    @property
    def rows(self) -> Tensor:
        """The number of each image, int64 (n,)."""
        return torch.arange(len(self.images), device=self.images.device)

    def victim(self, randomness: str = "fresh", k: int = 1, gradient: str = "full") -> Victim:
        """The defense as attacks see it, under a randomness model; the study's seed is the root of
        its draws.
        """
        setting = self.setting
        return Victim(
            self.classifier,
            self.setup.images.ids,
            randomness=RandomnessModel(randomness, k),
            gradient=gradient,
            root=setting.seed,
            batch_size=setting.batch_size,
            device=setting.device,
        )


def evaluation_of(setting: StudySetting, spec: str) -> Evaluation:
    """The evaluation that builds a defense under the study's setup; its attack is never run."""
    never_run: Named[Attack[Any]] = Named(
        "gradient-search", "gradient-search", GradientSearch(GradientSearchParams(steps=1)), ()
    )
    return Evaluation(
        setting.setup,
        create(DEFENSES, parse(spec)),
        never_run,
        "full",
        RandomnessModel(),
        seed=setting.seed,
        build_seed=0,
    )


def deploy(
    setting: StudySetting, specs: Sequence[str], views: Sequence[str] = ()
) -> list[Deployed]:
    """Build the defenses. Raises `BadInput` where one cannot be built, or does not offer a view
    that the study needs.
    """
    images = setting.setup.images.pixels().to(setting.device)
    labels = setting.setup.images.labels.to(setting.device)
    evaluations = [evaluation_of(setting, spec) for spec in specs]
    deployed = [
        Deployed(setting, evaluation, build(evaluation, setting.device), images, labels)
        for evaluation in evaluations
    ]
    for defense in deployed:
        _check_views(defense, views)
    return deployed


def _check_views(defense: Deployed, views: Sequence[str]) -> None:
    missing = [view for view in views if view not in defense.classifier.views()]
    if missing:
        raise BadInput(
            f"defense {defense.evaluation.defense.name!r} does not offer the view {missing[0]!r}, "
            "which this study needs: leave it out"
        )


def diffusion_models(classifier: nn.Module) -> list[DiffusionModel]:
    """The diffusion models inside a defended classifier."""
    return [module for module in classifier.modules() if isinstance(module, DiffusionModel)]


def diffusion_model(defense: Deployed) -> DiffusionModel:
    """The first diffusion model of a defense. Raises `BadInput` where it has none."""
    models = diffusion_models(defense.classifier)
    if not models:
        raise BadInput(
            f"defense {defense.spec!r} has no diffusion model, which this study looks at: leave it "
            "out"
        )
    return models[0]


def features(setting: StudySetting, images: Tensor) -> npt.NDArray[np.float64]:
    """Features (n, d) before the last layer of the setup's classifier. Raises `BadInput` where it
    does not offer them.
    """
    setup = setting.setup
    if "features" not in setup.classifier.views():
        raise BadInput(
            f"the classifier {setup.classifier_spec} does not offer the view 'features': give a "
            "classifier of the zoo"
        )
    forward = setup.classifier.forward_pass("full", "features")
    return in_batches(setting, forward, images, "features").double().numpy()


def in_batches(setting: StudySetting, forward: Forward, images: Tensor, site: str) -> Tensor:
    """A classifier's outputs on images (n, C, H, W), without gradient; `site` names its noise."""
    noise = Noise.of(setting.seed, Stream.EVAL, np.arange(len(images))).at(site)
    batches = [
        slice(start, start + setting.batch_size)
        for start in range(0, len(images), setting.batch_size)
    ]
    with torch.no_grad():
        return torch.cat([forward(images[rows], noise.rows(rows)) for rows in batches])


def check_linf(setting: StudySetting) -> float:
    """The ball's eps. Raises `BadInput` where the ball is not Linf's."""
    threat = setting.setup.threat
    if threat.norm != "linf":
        raise BadInput(
            f"this study draws from the Linf ball, but the ball is {threat}: leave out --norm, or "
            "give --norm linf"
        )
    return threat.eps


P = TypeVar("P", bound=DefensesParams)


def defense_identities(specs: Sequence[str]) -> dict[str, Any]:
    """What each defense is, by its canonical spec. Raises `BadInput` for a spec that cannot be
    read.
    """
    named = [create(DEFENSES, parse(spec)) for spec in specs]
    return {defense.spec: defense.identity for defense in named}


class DefenseStudy(Study[P]):
    """Base of the studies that compare defenses; the identity holds the defenses and what they are
    built from.
    """

    def plugins(self) -> dict[str, Any]:
        return defense_identities(self.params.defenses)

    def sources(self, setting: StudySetting) -> dict[str, str]:
        """The diffusion models, by the defense that they are for."""
        if not self.uses & IMAGES:
            return {}
        evaluations = [evaluation_of(setting, spec) for spec in self.params.defenses]
        return {
            evaluation.defense.spec: fingerprint(evaluation.generator())
            for evaluation in evaluations
            if Need.GENERATOR in evaluation.defense.plugin.needs
        }


def columns(name: str, estimate: Estimate) -> dict[str, float]:
    """Three columns of a table: the value, and where its 95 % interval begins and ends."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def shown(row: Mapping[Any, Any] | pd.Series, name: str) -> str:
    """What `columns` wrote, as text: `0.266 [0.253, 0.279]`."""
    return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]).scaled(1, 3)
