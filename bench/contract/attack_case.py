"""What an attack is checked on: a few images and small models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from bench.attack import Attack, AttackResult
from bench.contract.setups import built_in_setup
from bench.data.dataset import ImageSet
from bench.defense import DefendedClassifier
from bench.engine.evaluation import Evaluation
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import isolated
from bench.plugins.create import ATTACKS, BASE, DEFENSES, AttackChoice, Named, create, create_attack
from bench.randomness import RandomnessModel, read_randomness
from bench.spec import Spec, canonical, parse, read_params
from bench.threat import Norm, ThreatModel
from bench.victim import Victim, frozen

EPS: dict[Norm, float] = {"linf": 0.024, "l2": 0.6, "l1": 4.0}
"""Under which about half of the built-in images can be broken."""


class AttackCase:
    """An attack to check: its spec, such as `my_attack.py@MyAttack:steps=5`, or its class (with its
    default parameters).
    """

    def __init__(self, attack: str | type[Attack[Any]]) -> None:
        choice = _choice(attack)
        self.attack, self.gradient = choice.attack, choice.gradient
        self.plugin: Attack[Any] = self.attack.plugin
        self.randomness = read_randomness(choice.randomness or "fresh")
        self.setup = built_in_setup()
        self.images = self.setup.images

    @cached_property
    def norm(self) -> Norm:
        """The first norm that the attack takes."""
        return next(iter(self.points_by_norm))

    @cached_property
    def points_by_norm(self) -> dict[Norm, AttackResult]:
        """What the attack makes of the built-in images in each norm that it takes."""
        return dict(self._points())

    def _points(self) -> Iterator[tuple[Norm, AttackResult]]:
        for norm in cast(tuple[Norm, ...], get_args(Norm)):
            try:
                yield (
                    norm,
                    self.run(self.setup.classifier, self.images, ThreatModel(norm, EPS[norm])),
                )
            except BadInput:
                continue

    @property
    def threat(self) -> ThreatModel:
        """A ball in which about half of the images can be broken."""
        return ThreatModel(self.norm, EPS[self.norm])

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation that the engine runs: the undefended classifier."""
        base = create(DEFENSES, parse(BASE))
        return Evaluation(
            self.setup, base, self.attack, "full", RandomnessModel(), seed=0, build_seed=0
        )

    def run(
        self,
        classifier: DefendedClassifier,
        images: ImageSet,
        threat: ThreatModel,
        randomness: RandomnessModel | None = None,
        evaluated: ImageSet | None = None,
    ) -> AttackResult:
        """Run the attack on these images, the global generators seeded alike and left as found.

        `evaluated` are all images of the evaluation; these by default.
        """
        with isolated(0):
            return self.run_openly(classifier, images, threat, randomness, evaluated)

    def run_openly(
        self,
        classifier: DefendedClassifier,
        images: ImageSet,
        threat: ThreatModel,
        randomness: RandomnessModel | None = None,
        evaluated: ImageSet | None = None,
    ) -> AttackResult:
        """Run the attack on these images, as many a call as it declares."""
        unit = self.plugin.unit(classifier.stochastic) or len(images)
        blocks = np.split(np.arange(len(images)), range(unit, len(images), unit))
        with frozen(classifier):
            return _joined(
                [
                    self._call(classifier, images, block, threat, randomness, evaluated)
                    for block in blocks
                ]
            )

    def _call(
        self,
        classifier: DefendedClassifier,
        everything: ImageSet,
        block: npt.NDArray[np.int64],
        threat: ThreatModel,
        randomness: RandomnessModel | None,
        evaluated: ImageSet | None,
    ) -> AttackResult:
        images = everything.at(block)
        gradient = self.gradient if self.gradient in classifier.gradients else "full"
        # An undefended classifier is its own base.
        base = classifier if isinstance(classifier, Classifier) else self.setup.classifier
        victim = Victim(
            classifier,
            images.ids,
            randomness=randomness or self.randomness,
            gradient=gradient or "full",
            base=lambda: base,
        )
        victim.evaluated = everything if evaluated is None else evaluated
        return self.plugin(victim, images.pixels().clone(), images.labels.clone(), threat)


def _joined(results: list[AttackResult]) -> AttackResult:
    points, predictions, stages = (
        torch.cat([getattr(result, name) for result in results])
        for name in ("points", "predictions", "stages")
    )
    return AttackResult(points, predictions, sum(result.reprojected for result in results), stages)


def _choice(attack: str | type[Attack[Any]]) -> AttackChoice:
    if isinstance(attack, str):
        return create_attack(attack)
    ATTACKS.check(attack, getattr(attack, "__name__", str(attack)))
    params = read_params(attack.Params, Spec(attack.__name__), f"attack {attack.__name__!r}")
    return AttackChoice(
        Named(attack.__name__, canonical(attack.__name__, params), attack(params), ()), None, None
    )
