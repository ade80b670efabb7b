"""One evaluation: a defense under an attack on a setup, and its identity."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from bench.access.pool import POOL_VERSION, outside
from bench.access.public import PublicImages, check_foreign, load_public
from bench.attack import Attack
from bench.data.dataset import ImageSet
from bench.defense import BuildSetting, Defense, Need, Setting, gradient_name
from bench.diffusion.load import load_model
from bench.diffusion.model import DiffusionModel
from bench.engine.fingerprint import fingerprint
from bench.engine.setup import Setup
from bench.errors import BadInput
from bench.plugins.create import BASE, DEFENSES, Named, create
from bench.randomness import RandomnessModel
from bench.results.record import Title
from bench.spec import parse
from bench.storage.identity import identity_hash

JUDGED_DRAWS = 20
"""Fresh draws on which a stochastic defense is judged, after the attack has ended."""

PROTOCOL = 1
"""Raise it when the engine's own arithmetic may change an outcome."""


@dataclass(frozen=True)
class Evaluation:
    """A defense under an attack on a setup, before it is run."""

    setup: Setup
    defense: Named[Defense[Any]]
    attack: Named[Attack[Any]]
    gradient: str
    randomness: RandomnessModel
    seed: int
    build_seed: int
    asked: bool = field(default=True, compare=False)
    """Whether somebody asked for it, and not only for a row that is compared with it."""

    def __post_init__(self) -> None:
        plugin = self.attack.plugin.fitted(self.setting)
        if plugin is not self.attack.plugin:
            object.__setattr__(self, "attack", replace(self.attack, plugin=plugin))

    @property
    def stochastic(self) -> bool:
        """Whether the defended classifier draws random numbers."""
        plugin = self.defense.plugin
        inside = plugin.encloses and self.setup.classifier.stochastic
        return bool(plugin.stochastic) or inside

    @property
    def gradients(self) -> tuple[str, ...]:
        """The backward passes that the defended classifier offers."""
        plugin = self.defense.plugin
        inside = self.setup.classifier.gradients if plugin.encloses else ()
        return tuple(dict.fromkeys((*plugin.gradients, *inside)))

    @property
    def setting(self) -> Setting:
        """What attack and defense may know before anything is built."""
        setup = self.setup
        return Setting(
            self.stochastic,
            self.randomness,
            setup.threat,
            setup.classifier.num_classes,
            tuple(setup.images.images.shape[1:]),
            has_base=self.has_base,
            gradients=self.gradients,
            attacks=self.defense.plugin.card.attacks,
        )

    @property
    def build_setting(self) -> BuildSetting:
        """What a defense may look at before it is built."""
        return BuildSetting(
            **vars(self.setting), classifier=self.setup.classifier, generator=self.generator
        )

    @property
    def judged_draws(self) -> int:
        """Fresh draws an image on which the verdict rests."""
        return JUDGED_DRAWS if self.stochastic else 1

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that can change the outcome, and nothing else."""
        setup = self.setup
        return {
            "protocol": PROTOCOL,
            "defense": self.defense.identity,
            "attack": self.attack.identity,
            "gradient": self.gradient,
            "randomness": str(self.randomness),
            "dataset": {
                "name": setup.dataset.name,
                "sha256": setup.images.sha256,
                "n": len(setup.images),
            },
            "classifier": {"sha256": setup.classifier_sha},
            "threat": {"norm": setup.threat.norm, "eps": setup.threat.eps},
            "seeds": {"build": self.build_seed, "attack": self.seed},
            "judged_draws": self.judged_draws,
            "data": {str(need): self._served(need) for need in sorted(self.defense.plugin.needs)},
        }

    def _served(self, need: Need) -> str:
        """Hash of what a declared need is served with, which can change the defense; empty where
        nothing serves it.
        """
        if need == Need.TRAINING_DATA:
            return self.setup.dataset.plugin.train().sha256
        if need == Need.PUBLIC_IMAGES:
            return self.public_images().images.sha256
        if need == Need.UNLABELLED_TEST:
            return f"{POOL_VERSION}:{self.free_images().sha256}"
        return fingerprint(self.generator()) if need == Need.GENERATOR else ""

    def free_images(self) -> ImageSet:
        """The data set's test images that are not evaluated."""
        return outside(self.setup.dataset.plugin.test(), self.setup.images)

    def public_images(self) -> PublicImages:
        """The public images that the defense asks for, as they come. Raises `BadInput` where they
        are the evaluated ones.
        """
        spec = self.defense.plugin.asks.get(Need.PUBLIC_IMAGES)
        if not spec:
            raise BadInput(
                f"defense {self.defense.name!r} needs public images and names none: let `asks` say "
                "which"
            )
        public = load_public(spec)
        check_foreign(public, self.setup.dataset, self.setup.images)
        return public

    def generator(self) -> DiffusionModel:
        """The diffusion model that the defense asks for, one for all evaluations. Raises `BadInput`
        where there is none.
        """
        spec = (
            self.defense.plugin.asks.get(Need.GENERATOR)
            or self.setup.dataset.plugin.default_generator
        )
        if not spec:
            raise BadInput(
                f"dataset {self.setup.dataset.name!r} has no diffusion model of its own: give "
                f"{self.defense.name}:model=SPEC "
                "(see `bench list diffusion-models`)"
            )
        return load_model(spec)

    @cached_property
    def id(self) -> str:
        """Hash of the identity."""
        return identity_hash(self.identity)

    @cached_property
    def title(self) -> Title:
        """Canonical specs to read."""
        return {
            "defense": self.defense.spec,
            "attack": self.attack.spec,
            "gradient": self.gradient,
            "randomness": str(self.randomness) if self.stochastic else "none",
            "dataset": self.setup.dataset.spec,
            "classifier": self.setup.classifier_spec,
            "threat": str(self.setup.threat),
            "n": str(len(self.setup.images)),
            "seed": str(self.seed),
        }

    def __str__(self) -> str:
        title = self.title
        extra = [title["gradient"]] * (title["gradient"] != "full") + [
            title["randomness"]
        ] * self.stochastic
        return (
            f"{title['defense']} x "
            f"{title['attack']}{' (' + ', '.join(extra) + ')' if extra else ''}"
        )

    @property
    def has_base(self) -> bool:
        """Whether attacks may ask the undefended classifier: the base is its own."""
        return self.defense.name == BASE or self.defense.plugin.has_base

    def base(self) -> Evaluation | None:
        """The undefended base under the same attack; None for the base itself."""
        if self.defense.name == BASE or not self.defense.plugin.has_base:
            return None
        base = create(DEFENSES, parse(BASE))
        return settled(replace(self, defense=base, asked=False))


def settled(evaluation: Evaluation) -> Evaluation:
    """The evaluation with settings that cannot matter set to their plain value.

    So equal work has one identity:

    - a gradient that nobody offers becomes `full`, as there is nothing to replace;
    - where nothing is random, the randomness model is the plain one;
    - where all stages are frozen, all of the noise is fixed;
    - where none of the frozen stages exists (the base of a stochastic classifier), no noise is;
    - where nothing is drawn in the construction, the build seed is 0.
    """
    gradient = (
        evaluation.gradient
        if gradient_name(evaluation.gradient) in evaluation.gradients
        else "full"
    )
    randomness, stages = (
        evaluation.randomness if evaluation.stochastic else RandomnessModel(),
        set(evaluation.defense.plugin.stages),
    )
    if randomness.freeze and not stages & set(randomness.freeze):
        randomness = RandomnessModel()
    if (
        randomness.freeze
        and set(randomness.freeze) == stages
        and not evaluation.setup.classifier.stochastic
    ):
        randomness = replace(randomness, freeze=())
    return replace(
        evaluation,
        gradient=gradient,
        randomness=randomness,
        build_seed=evaluation.build_seed if evaluation.defense.plugin.seeded else 0,
    )
