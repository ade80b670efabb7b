"""What studies of defenses share: defenses built from their specs, a short attack, means with
intervals in tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from bench.attack import Attack
from bench.defense import DefendedClassifier, Need
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
from bench.studies.study import Study, StudySetting
from bench.threat import ThreatModel
from bench.victim import Victim


class DefensesParams(Params):
    """Which defenses are studied."""

    defenses: Specs = Field(
        ("diffpure", "revpure"),
        min_length=1,
        description="defense specs joined by +, in parentheses where they hold commas: "
        "diffpure+(revpure:t=100,steps=5)",
    )


class SearchParams(Params):
    """Parameters of `Climb`."""

    steps: int = Field(ge=1, le=10_000, description="gradient steps of the attack")


class Search(Attack[SearchParams]):
    """Projected ascent of the cross-entropy from the image itself (Madry et al. 2018), step length
    2.5 eps / steps.
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
    """A defense in front of the subject's classifier.

    Attributes:
        cell: what it was built from.
        classifier: on the setting's device.
        images, labels: the subject's, (n, C, H, W) in [0, 1] and (n,), on the device.
    """

    setting: StudySetting
    evaluation: Evaluation
    classifier: DefendedClassifier
    images: Tensor
    labels: Tensor

    @property
    def spec(self) -> str:
        """The defense's canonical spec."""
        return self.evaluation.defense.spec

    @property
    def setup(self) -> Setup:
        """Images, classifier and ball."""
        return self.evaluation.setup

    @property
    def rows(self) -> Tensor:
        """The number of each image, int64 (n,)."""
        return torch.arange(len(self.images), device=self.images.device)

    def victim(self, randomness: str = "fresh", k: int = 1, gradient: str = "full") -> Victim:
        """The defense as attacks see it, under a law; the study's seed is the root of its draws."""
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
    """The cell of a defense; its attack is never run."""
    attack: Named[Attack[Any]] = Named("climb", "climb", Search(SearchParams(steps=1)), ())
    return Evaluation(
        setting.setup,
        create(DEFENSES, parse(spec)),
        attack,
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
    setup = setting.setup
    images, labels = (
        setup.images.pixels().to(setting.device),
        setup.images.labels.to(setting.device),
    )
    evaluations = [evaluation_of(setting, spec) for spec in specs]
    found = [
        Deployed(setting, evaluation, build(evaluation, setting.device), images, labels)
        for evaluation in evaluations
    ]
    for one in found:
        _check_views(one, views)
    return found


def _check_views(one: Deployed, views: Sequence[str]) -> None:
    missing = [view for view in views if view not in one.classifier.views()]
    if missing:
        raise BadInput(
            f"defense {one.evaluation.defense.name!r} does not offer the view {missing[0]!r}, "
            "which this study needs: leave it out"
        )


def diffusion_models(classifier: nn.Module) -> list[DiffusionModel]:
    """The diffusion models inside a defended classifier."""
    return [module for module in classifier.modules() if isinstance(module, DiffusionModel)]


def diffusion_model(one: Deployed) -> DiffusionModel:
    """The first diffusion model of a defense. Raises `BadInput` where it has none."""
    found = diffusion_models(one.classifier)
    if not found:
        raise BadInput(
            f"defense {one.spec!r} has no diffusion model, which this study looks at: leave it out"
        )
    return found[0]


def features(setting: StudySetting, images: Tensor) -> npt.NDArray[np.float64]:
    """Features (n, d) before the last layer of the subject's classifier. Raises `BadInput` where it
    does not offer them.
    """
    setup = setting.setup
    if "features" not in setup.classifier.views():
        raise BadInput(
            f"the classifier {setup.classifier_spec} does not offer the view 'features': give a "
            "classifier of the zoo"
        )
    forward = setup.classifier.forward_pass("full", "features")
    noise = Noise.of(setting.seed, Stream.EVAL, np.arange(len(images))).at("features")
    size = setting.batch_size
    with torch.no_grad():
        parts = [
            forward(images[rows], noise.rows(rows))
            for rows in (slice(at, at + size) for at in range(0, len(images), size))
        ]
    return torch.cat(parts).double().numpy()


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


class DefenseStudy(Study[P]):
    """Base of the studies that compare defenses; the identity holds the defenses and what they are
    built from.
    """

    def plugins(self) -> dict[str, Any]:
        """The defenses, by spec."""
        named = [create(DEFENSES, parse(spec)) for spec in self.params.defenses]
        return {one.spec: one.identity for one in named}

    def sources(self, setting: StudySetting) -> dict[str, str]:
        """The diffusion models, by the defense that they are for."""
        evaluations = [evaluation_of(setting, spec) for spec in self.params.defenses]
        return {
            evaluation.defense.spec: fingerprint(evaluation.generator())
            for evaluation in evaluations
            if Need.GENERATOR in evaluation.defense.plugin.needs
        }


def columns(name: str, estimate: Estimate) -> dict[str, float]:
    """Three columns of a table: the mean, and where its 95 % interval begins and ends."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
