"""`datafreeshield`: adversarial training on images that the classifier makes itself; no data at
all.

Lee et al., "DataFreeShield: Defending Adversarial Attacks without Training Data", ICML 2024:
diversified sample synthesis (`defenses.datafree.synthesis`), a loss of three terms and GradRefine
(`defenses.adversarial`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from bench.defense import Card, DataAccess, DefendedClassifier, Defense
from bench.noise import Noise
from bench.spec import Params
from bench_defenses.adversarial.objectives import Objective, ObjectiveSpec, read_objective
from bench_defenses.adversarial.params import ATTACKS, TrainingEps, TrainingParams
from bench_defenses.adversarial.source import Source, Tag
from bench_defenses.adversarial.students import Lesson, taught
from bench_defenses.adversarial.trainer import Schedule, passes
from bench_defenses.datafree.fields import FieldRecipe
from bench_defenses.datafree.images import SyntheticImages, synthetic_images
from bench_defenses.datafree.synthesis import Keep, Modes, Recipe, Space, Start, Targets

BUDGET = 6.0
"""Learning rate times batches of a whole training run at the published scale: 1e-4 on 60,000
batches.
"""

HELD_OUT = 0.1
"""Share of images that is made in addition where held-out images choose the epoch."""


@dataclass(frozen=True)
class Scale:
    """How much a profile computes: images, Adam's steps on each, images at once; epochs, images a
    batch, batches a step.
    """

    images: int
    iterations: int
    synthesis_batch: int
    epochs: int
    batch: int
    group: int


PROFILES = {
    "smoke": Scale(100, 20, 10, 2, 20, 2),
    "quick": Scale(1_000, 150, 50, 20, 50, 2),
    "small": Scale(4_000, 500, 200, 50, 200, 5),
    "medium": Scale(10_000, 1_000, 250, 100, 200, 10),
    "gpu-half": Scale(30_000, 1_000, 250, 60, 200, 20),
    "full": Scale(60_000, 2_000, 250, 200, 200, 20),
}


@dataclass(frozen=True)
class Preset:
    """A recipe at any scale.

    Attributes:
        synthesis: fields of `Recipe`.
        training: parameters of `TrainingParams`.
        objective: the default one.
        full: fields of `Scale` that differ under profile=full.
        bn_updates: see `defenses.adversarial.trainer.Schedule`.
    """

    synthesis: dict[str, Any]
    training: dict[str, Any]
    objective: str = "datafreeshield"
    full: dict[str, Any] = field(default_factory=dict)
    bn_updates: Literal[2, 3] = 2


_RELEASED: dict[str, Any] = {"space": "normalised", "keep": "last"}
_PUBLISHED: dict[str, Any] = {
    "rate": 1e-4,
    "decay": 1e-4,
    "schedule": "const",
    "warmup": 0.0,
    "clip": 0.0,
}

PRESETS = {
    "honest": Preset(
        {"space": "pixels", "targets": "balanced"}, {"decay": 1e-4, "schedule": "const"}
    ),
    "repo-general": Preset(_RELEASED, _PUBLISHED, bn_updates=3),
    "repo-medical": Preset(
        {**_RELEASED, "targets": "uniform"},
        _PUBLISHED,
        "(datafreeshield:tau=1)",
        {"epochs": 100, "batch": 128},
        bn_updates=3,
    ),
    "icml": Preset(
        {**_RELEASED, "tv_random": True},
        _PUBLISHED,
        full={"synthesis_batch": 200, "epochs": 100},
        bn_updates=3,
    ),
}


class DataFreeShieldParams(Params):
    """Parameters of `datafreeshield`. What is left out is the profile's or the preset's."""

    profile: Literal["smoke", "quick", "small", "medium", "gpu-half", "full"] = Field(
        "quick",
        description="scale: quick takes some minutes with a small network on two cores, full is "
        "the published one",
    )
    preset: Literal["honest", "repo-general", "repo-medical", "icml"] = Field(
        "honest",
        description="recipe: one that works at small scale, the released scripts', or the paper's",
    )
    synthesis: Literal["inversion", "fields"] = Field(
        "inversion",
        description="as published; or an extension: random fields drawn towards the BatchNorm "
        "statistics",
    )
    seed: int = Field(0, ge=0, description="another one gives other images of the same build seed")
    images: int | None = Field(None, ge=1, description="synthetic images")
    iterations: int | None = Field(None, ge=1, description="Adam's steps on each image")
    synthesis_batch: int | None = Field(
        None, ge=1, description="images made at once, under common BatchNorm statistics"
    )
    synthesis_rate: float = Field(0.1, gt=0, description="Adam's step size on images")
    coefficients: Modes | None = Field(
        None, description="of the synthesis losses, by batch: fixed, dss, linear or pointwise"
    )
    shift: float = Field(0.0, ge=0, description="added to random coefficients")
    tv_random: bool | None = Field(
        None, description="whether dss draws total variation's coefficient too"
    )
    a_cls: float = Field(1.0, ge=0, description="weight of the class loss")
    a_bn: float = Field(1.0, ge=0, description="weight of the BatchNorm statistics")
    a_tv: float = Field(2.5e-5, ge=0, description="weight of total variation, for a batch of 250")
    targets: Targets | None = Field(
        None, description="one class a batch, all classes in each, or a random one for each image"
    )
    space: Space | None = Field(
        None,
        description="what Adam moves: the network input, clamped at the end; pixels; logits of "
        "pixels",
    )
    start: Start = Field(
        "normal",
        description="law of the first image: normal in the network input, or uniform pixels",
    )
    start_scale: float = Field(1.0, gt=0, description="scale of the normal law")
    jitter: int = Field(2, ge=0, description="pixels by which each iteration may roll a batch")
    keep: Keep | None = Field(
        None, description="iterate that is kept: the best one without jitter, or the last one"
    )
    every: int = Field(50, ge=1, description="iterations between two looks for the best iterate")
    labels: Literal["target", "teacher"] = Field(
        "target", description="hard labels: the class aimed at, or the classifier's answer"
    )
    objective: ObjectiveSpec | None = Field(
        None, description="datafreeshield, trades, mart, pgd-at, ard or rslad, with its parameters"
    )
    eps: TrainingEps = Field(
        "auto", description="radius of the training ball; auto = the announced threat's"
    )
    steps: int = Field(
        10, ge=1, le=1000, description="steps of the inner attack, of length 2.5 eps/steps each"
    )
    epochs: int | None = Field(None, ge=1, description="passes over the images")
    batch: int | None = Field(None, ge=1, description="images a training batch")
    group: int | None = Field(
        None,
        ge=1,
        le=32_767,
        description="batches behind one step, joined by GradRefine; 1 = plain descent",
    )
    tau: float = Field(
        0.5,
        ge=0,
        le=1,
        description="GradRefine's threshold: by how much one sign must outweigh the other",
    )
    optimiser: Literal["sgd", "adam"] = Field(
        "sgd", description="SGD with Nesterov momentum 0.9, or Adam"
    )
    rate: float | None = Field(
        None,
        gt=0,
        description="learning rate; honest: 6 / number of batches, the published product",
    )
    decay: float | None = Field(None, ge=0, description="weight decay")
    schedule: Literal["const", "cosine"] | None = Field(
        None, description="course of the learning rate"
    )
    warmup: float | None = Field(
        None, ge=0, le=1, description="share of the training in which eps rises to its value"
    )
    clip: float | None = Field(
        None, ge=0, description="largest gradient norm of a batch; 0 = no limit"
    )
    bn: Literal["train", "frozen"] = Field(
        "train", description="BatchNorm learns from the batches, or stays as it came"
    )
    checkpoint: Literal["last", "best"] = Field(
        "last", description="the last epoch, or the best on further synthetic images"
    )
    from_scratch: bool = Field(
        False, description="start from fresh weights instead of the classifier's"
    )

    @model_validator(mode="after")
    def _no_field_is_idle(self) -> DataFreeShieldParams:
        idle = (
            sorted(self.model_fields_set & {*_OF_INVERSION, *_OF_PRESET, "labels"})
            if self.synthesis == "fields"
            else []
        )
        if idle:
            raise ValueError(f"{idle[0]} belongs to synthesis=inversion: drop it")
        return self

    @property
    def recipe_of_preset(self) -> Preset:
        """The preset."""
        return PRESETS[self.preset]

    @property
    def scale(self) -> Scale:
        """The profile's scale, with what was given in its place."""
        base = PROFILES[self.profile]
        if self.profile == "full":
            base = replace(base, **self.recipe_of_preset.full)
        return replace(base, **self._given(vars(base)))

    def recipe(self) -> Recipe | FieldRecipe:
        """How images are made."""
        scale = self.scale
        if self.synthesis == "fields":
            return FieldRecipe(scale.images)
        values: dict[str, Any] = {
            **{name: getattr(self, name) for name in _OF_SYNTHESIS},
            **self.recipe_of_preset.synthesis,
            **self._given(_OF_PRESET),
        }
        return Recipe(
            scale.images, scale.synthesis_batch, scale.iterations, self.synthesis_rate, **values
        )

    def training(self) -> TrainingParams:
        """How the student is trained."""
        scale = self.scale
        batches = scale.epochs * max(1, scale.images // scale.batch)
        values: dict[str, Any] = {
            **{name: getattr(self, name) for name in _OF_TRAINING},
            "epochs": scale.epochs,
            "batch": scale.batch,
            "group": scale.group,
            "agreement": self.tau,
            "rate": BUDGET / batches,
            **self.recipe_of_preset.training,
            **self._given(("rate", "decay", "schedule", "warmup", "clip")),
        }
        return TrainingParams(**values)

    def _given(self, names: Any) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


_OF_SYNTHESIS = ("shift", "a_cls", "a_bn", "a_tv", "start", "start_scale", "jitter", "every")
_OF_PRESET = ("coefficients", "tv_random", "targets", "space", "keep")
_OF_INVERSION = (*_OF_SYNTHESIS, "iterations", "synthesis_batch", "synthesis_rate")
_OF_TRAINING = ("eps", "steps", "optimiser", "bn", "checkpoint", "from_scratch")


class DataFreeShield(Defense[DataFreeShieldParams]):
    """Adversarial training on images synthesised from the classifier alone."""

    Params = DataFreeShieldParams
    card = Card(
        paper="Lee et al., ICML 2024 (DataFreeShield)",
        note="the classifier is trained again on images that its BatchNorm statistics and "
        "classes give; it touches no data",
        attacks=ATTACKS,
    )

    def training_images(
        self, classifier: DefendedClassifier, access: DataAccess, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """The images (n, C, H, W) in [0, 1] that `build` trains on, and the classes (n,) that they
        aim at.
        """
        made = self._images(classifier, access, noise)
        return made.images, made.labels

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: Noise
    ) -> DefendedClassifier:
        """The trained copy of the classifier, which must have BatchNorm layers."""
        made = self._images(classifier, access, noise)
        student = taught(
            classifier, self._lesson(made, classifier, access, noise), noise, self.needs
        )
        student.notes = (self._note(made), *student.notes)
        return student

    def claimed_passes(self) -> dict[str, dict[str, int]]:
        """By stage how often each image is visited, and the passes of a network that a visit takes.

        An iteration takes N (F + B) for N images, a round of random fields N F. Looks at the
        iterates, the teacher's answers and checkpoint=best add to that.
        """
        recipe, lesson = self.params.recipe(), passes(self._objective(), self._schedule())
        visits, back = (
            (recipe.rounds, 0) if isinstance(recipe, FieldRecipe) else (recipe.iterations, 1)
        )
        synthesis = {
            "visits": visits,
            "forwards": 1,
            "input_backwards": back,
            "weight_backwards": 0,
        }
        return {"synthesis": synthesis, "training": {"visits": self.params.scale.epochs, **lesson}}

    def _objective(self) -> Objective:
        return read_objective(self.params.objective or self.params.recipe_of_preset.objective)

    def _schedule(self) -> Schedule:
        return replace(
            self.params.training().course(), bn_updates=self.params.recipe_of_preset.bn_updates
        )

    def _images(
        self, classifier: DefendedClassifier, access: DataAccess, noise: Noise
    ) -> SyntheticImages:
        return synthetic_images(
            classifier, access.shape, self.params.recipe(), noise.at(f"seed{self.params.seed}")
        )

    def _lesson(
        self,
        made: SyntheticImages,
        classifier: DefendedClassifier,
        access: DataAccess,
        noise: Noise,
    ) -> Lesson:
        params = self.params
        return Lesson(
            images=self._source(made),
            held_out=self._held_out(classifier, access, noise)
            if params.checkpoint == "best"
            else None,
            objective=self._objective(),
            schedule=self._schedule(),
            threat=params.training().ball(access.threat),
            from_scratch=params.from_scratch,
        )

    def _held_out(self, classifier: DefendedClassifier, access: DataAccess, noise: Noise) -> Source:
        """Images of other batches or of another population, not a split: those of one share their
        coefficients or ancestors.
        """
        recipe, noise = self.params.recipe(), noise.at(f"held-out{self.params.seed}")
        if isinstance(recipe, FieldRecipe):
            return self._source(synthetic_images(classifier, access.shape, recipe, noise))
        # A whole batch of them for each class where a batch has only one, else enough to have all
        # classes among random ones.
        classes = classifier.num_classes
        fewest = (
            classes * recipe.batch
            if recipe.targets == "per_batch"
            else max(recipe.batch, 10 * classes)
        )
        recipe = replace(recipe, images=max(round(HELD_OUT * recipe.images), fewest))
        return self._source(synthetic_images(classifier, access.shape, recipe, noise))

    def _source(self, made: SyntheticImages) -> Source:
        return Source(
            made.images, made.labels if self.params.labels == "target" else None, Tag.SYNTHETIC
        )

    def _note(self, made: SyntheticImages) -> str:
        scale, about = self.params.scale, made.about
        if self.params.synthesis == "fields":
            return (
                f"trained for {scale.epochs} epochs on {scale.images} random fields drawn towards "
                f"the classifier's BatchNorm statistics, off by {about['gap_first']:.1f} at first "
                f"and by {about['gap_last']:.1f} at last; not DataFreeShield's synthesis: the law "
                "of the fields (smooth, cut, windowed) was written down by hand"
            )
        return (
            f"trained on {scale.images} images that the classifier made itself, {scale.iterations} "
            f"iterations each, for {scale.epochs} epochs (profile {self.params.profile}, "
            "published: 60000, 2000, 200); the classifier is right on "
            f"{100 * about['accuracy']:.1f} % of them, "
            f"{100 * about['accuracy_before_clamping']:.1f} % before clamping"
        )
