"""`datafreeshield`: adversarial training on images that the classifier makes itself; no data at
all.

Lee et al., "DataFreeShield: Defending Adversarial Attacks without Training Data", ICML 2024:
diversified sample synthesis (`bench_defenses.datafree.synthesis`), a loss of three terms and
GradRefine (`bench_defenses.adversarial`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from bench.defense import BuildSetting, Card, DataAccess, DefendedClassifier, Defense
from bench.models.training import device_of
from bench.noise import BuildNoise
from bench.spec import Params
from bench_defenses.adversarial.objectives import Objective, ObjectiveSpec, read_objective
from bench_defenses.adversarial.params import (
    ATTACKS,
    HELD_OUT,
    TrainingEps,
    TrainingParams,
)
from bench_defenses.adversarial.students import trained_student
from bench_defenses.adversarial.tagged_images import Tag, TaggedImages
from bench_defenses.adversarial.trainer import Schedule, StudentTraining, passes
from bench_defenses.datafree.fields import FieldRecipe
from bench_defenses.datafree.images import SyntheticImages, synthetic_images
from bench_defenses.datafree.synthesis import (
    Coefficient,
    Keep,
    Space,
    SynthesisRecipe,
    Targets,
    check_classifier,
)

BUDGET = 6.0
"""Learning rate times batches of a whole training run at the published scale: 1e-4 on 60,000
batches.
"""

_PUBLISHED_RATE = 1e-4


@dataclass(frozen=True)
class SynthesisScale:
    """How much a scale computes: images, Adam's steps on each, images at once; epochs, images a
    batch, batches a step.
    """

    images: int
    iterations: int
    synthesis_batch: int
    epochs: int
    batch: int
    group: int

    @property
    def batches(self) -> int:
        """Training batches in all."""
        return self.epochs * max(1, self.images // self.batch)

    def shares_of(self, whole: SynthesisScale) -> tuple[float, float]:
        """Of the iterations of the synthesis, summed over images, and of the images that training
        visits, summed over epochs: what share of those of `whole` this is.
        """
        return (
            self.images * self.iterations / (whole.images * whole.iterations),
            self.images * self.epochs / (whole.images * whole.epochs),
        )


SCALES = {
    "smoke": SynthesisScale(100, 20, 10, 2, 20, 2),
    "quick": SynthesisScale(1_000, 150, 50, 20, 50, 2),
    "small": SynthesisScale(4_000, 500, 200, 50, 200, 5),
    "medium": SynthesisScale(10_000, 1_000, 250, 100, 200, 10),
    "gpu-half": SynthesisScale(30_000, 1_000, 250, 60, 200, 20),
    "full": SynthesisScale(60_000, 2_000, 250, 200, 200, 20),
}


def percent(share: float) -> str:
    """A share in percent, two digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def _shares_of_scales() -> str:
    """For `bench info`: the share of the published budget that each scale has."""
    whole = SCALES["full"]
    pairs = {name: map(percent, sizes.shares_of(whole)) for name, sizes in SCALES.items()}
    return ", ".join(f"{name} {' and '.join(pair)}" for name, pair in pairs.items())


@dataclass(frozen=True)
class TrainingRecipe:
    """How images are made and a student is trained on them, at any scale.

    Attributes:
        synthesis: fields of `SynthesisRecipe`.
        training: parameters of `TrainingParams`.
        objective: the default one.
        full: fields of `SynthesisScale` that differ under scale=full.
        bn_updates: see `bench_defenses.adversarial.training_step.Descent`.
    """

    synthesis: dict[str, Any]
    training: dict[str, Any]
    objective: str = "datafreeshield"
    full: dict[str, Any] = field(default_factory=dict)
    bn_updates: Literal[2, 3] = 2

    @property
    def whole(self) -> SynthesisScale:
        """The published scale."""
        return replace(SCALES["full"], **self.full)

    def rate(self, batches: int) -> float:
        """The learning rate with which so many batches keep the published product of rate and
        batches.
        """
        published = self.whole.batches
        return _PUBLISHED_RATE if batches == published else _PUBLISHED_RATE * published / batches


_RELEASED: dict[str, Any] = {"space": "normalised", "keep": "last"}
_PUBLISHED: dict[str, Any] = {
    "decay": 1e-4,
    "schedule": "const",
    "warmup": 0.0,
    "clip": 0.0,
}

RECIPES = {
    "honest": TrainingRecipe(
        {"space": "pixels", "targets": "balanced"}, {"decay": 1e-4, "schedule": "const"}
    ),
    "repo-general": TrainingRecipe(_RELEASED, _PUBLISHED, bn_updates=3),
    "repo-medical": TrainingRecipe(
        {**_RELEASED, "targets": "uniform"},
        _PUBLISHED,
        "(datafreeshield:temperature=1)",
        {"epochs": 100, "batch": 128},
        bn_updates=3,
    ),
    "icml": TrainingRecipe(
        {**_RELEASED, "tv_random": True},
        _PUBLISHED,
        full={"synthesis_batch": 200, "epochs": 100},
        bn_updates=3,
    ),
}


class DataFreeShieldParams(Params):
    """Parameters of `datafreeshield`. What is left out is the scale's or the recipe's."""

    scale: Literal["smoke", "quick", "small", "medium", "gpu-half", "full"] = Field(
        "quick",
        description="how much is computed: quick takes some minutes with a small network on two "
        "cores, full is the published scale. Shares of the published synthesis and training: "
        + _shares_of_scales(),
    )
    recipe: Literal["honest", "repo-general", "repo-medical", "icml"] = Field(
        "honest",
        description="how: one that works at small scale, the released scripts', or the paper's",
    )
    synthesis: Literal["inversion", "fields"] = Field(
        "inversion",
        description="as published; or an extension: random fields drawn towards the BatchNorm "
        "statistics",
    )
    images: int | None = Field(None, ge=1, description="synthetic images")
    iterations: int | None = Field(None, ge=1, description="Adam's steps on each image")
    synthesis_batch: int | None = Field(
        None, ge=1, description="images made at once, under common BatchNorm statistics"
    )
    synthesis_rate: float | None = Field(
        None,
        gt=0,
        description="Adam's step size in the units of `space`; where empty, the published 0.1 of "
        "the network's input, which is 0.1 std of a pixel, or 0.1 of a pixel if one batch ends at "
        "a smaller loss so",
    )
    coefficients: Coefficient | None = Field(
        None, description="of the synthesis losses, by batch: fixed, dss or linear"
    )
    tv_random: bool | None = Field(
        None, description="whether total variation's coefficient is drawn too"
    )
    targets: Targets | None = Field(
        None, description="one class a batch, all classes in each, or a random one for each image"
    )
    space: Space | None = Field(
        None,
        description="what Adam moves: the network input, clamped at the end; pixels; logits of "
        "pixels",
    )
    keep: Keep | None = Field(
        None, description="iterate that is kept: the best one without jitter, or the last one"
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
    threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="GradRefine's threshold: by how much one sign must outweigh the other",
    )
    rate: float | None = Field(
        None,
        gt=0,
        description="learning rate; published rate x batches / number of batches where empty",
    )
    decay: float | None = Field(None, ge=0, description="weight decay")
    schedule: Literal["const", "cosine"] | None = Field(
        None, description="schedule of the learning rate"
    )
    warmup: float | None = Field(
        None, ge=0, le=1, description="share of the training in which eps rises to its value"
    )
    clip: float | None = Field(
        None, ge=0, description="largest gradient norm of a batch; 0 = no limit"
    )
    checkpoint: Literal["last", "best"] = Field(
        "last", description="the last epoch, or the best on further synthetic images"
    )

    @model_validator(mode="after")
    def _no_field_is_idle(self) -> DataFreeShieldParams:
        idle = (
            sorted(self.model_fields_set & set(_OF_INVERSION)) if self.synthesis == "fields" else []
        )
        if idle:
            raise ValueError(f"{idle[0]} belongs to synthesis=inversion: drop it")
        return self

    @property
    def training_recipe(self) -> TrainingRecipe:
        """The one that `recipe` names."""
        return RECIPES[self.recipe]

    @property
    def sizes(self) -> SynthesisScale:
        """The scale's, with what was given in its place."""
        base = self.training_recipe.whole if self.scale == "full" else SCALES[self.scale]
        return replace(base, **self._given(vars(base)))

    def synthesis_recipe(self) -> SynthesisRecipe | FieldRecipe:
        """How images are made."""
        sizes = self.sizes
        if self.synthesis == "fields":
            return FieldRecipe(sizes.images)
        values = {**self.training_recipe.synthesis, **self._given(_OF_RECIPE)}
        return SynthesisRecipe(
            sizes.images, sizes.synthesis_batch, sizes.iterations, self.synthesis_rate, **values
        )

    def training_params(self) -> TrainingParams:
        """How the student is trained."""
        sizes = self.sizes
        values: dict[str, Any] = {
            **{name: getattr(self, name) for name in _OF_TRAINING},
            "epochs": sizes.epochs,
            "batch": sizes.batch,
            "group": sizes.group,
            "rate": self.training_recipe.rate(sizes.batches),
            **self.training_recipe.training,
            **self._given(("rate", "decay", "schedule", "warmup", "clip")),
        }
        return TrainingParams(**values)

    def _given(self, names: Any) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


_OF_RECIPE = ("coefficients", "tv_random", "targets", "space", "keep")
_OF_INVERSION = (*_OF_RECIPE, "iterations", "synthesis_batch", "synthesis_rate")
_OF_TRAINING = ("eps", "steps", "threshold", "checkpoint")


class DataFreeShield(Defense[DataFreeShieldParams]):
    """Adversarial training on images synthesised from the classifier alone."""

    Params = DataFreeShieldParams
    version = 2  # released recipes keep rate x batches at smaller scales; the step is chosen
    card = Card(
        paper="Lee et al., ICML 2024 (DataFreeShield)",
        note="the classifier is trained again on images that its BatchNorm statistics and "
        "classes give; it touches no data",
        attacks=ATTACKS,
    )

    def training_images(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> tuple[Tensor, Tensor]:
        """The images (n, C, H, W) in [0, 1] that `build` trains on, and the classes (n,) that they
        aim at.
        """
        made = self._images(classifier, access, noise)
        return made.images, made.labels

    def check(self, setting: BuildSetting) -> None:
        """Raise `BadInput` for a classifier out of which no images can be made."""
        check_classifier(
            setting.classifier,
            setting.shape,
            BuildNoise(0, device=device_of(setting.classifier)),
        )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The trained copy of the classifier, which must have BatchNorm layers."""
        made = self._images(classifier, access, noise)
        training = StudentTraining(
            images=_tagged(made),
            objective=self._objective(),
            schedule=self._schedule(),
            threat=self.params.training_params().ball(access.threat),
            held_out=self._held_out(classifier, access, noise),
        )
        student = trained_student(classifier, training, noise, self.needs)
        student.notes = (self._note(made), *student.notes)
        return student

    def claimed_passes(self) -> dict[str, dict[str, int]]:
        """By stage how many iterations use each image, and the passes of a network in one of them.

        An iteration takes N (F + B) for N images, a round of random fields N F. Readings of the
        iterates, the teacher's labels and checkpoint=best add to that.
        """
        recipe, step = self.params.synthesis_recipe(), passes(self._objective(), self._schedule())
        iterations, back = (
            (recipe.rounds, 0) if isinstance(recipe, FieldRecipe) else (recipe.iterations, 1)
        )
        synthesis = {
            "iterations": iterations,
            "forwards": 1,
            "input_backwards": back,
            "weight_backwards": 0,
        }
        training = {"iterations": self.params.sizes.epochs, **step}
        return {"synthesis": synthesis, "training": training}

    def _objective(self) -> Objective:
        return read_objective(self.params.objective or self.params.training_recipe.objective)

    def _schedule(self) -> Schedule:
        return replace(
            self.params.training_params().training_schedule(),
            bn_updates=self.params.training_recipe.bn_updates,
        )

    def _images(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> SyntheticImages:
        return synthetic_images(
            classifier, access.shape, self.params.synthesis_recipe(), noise.at(_IMAGES_SITE)
        )

    def _held_out(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> TaggedImages | None:
        """Images of other batches or of another population, not a split: those of one share their
        coefficients or ancestors. None where no epoch is chosen.
        """
        if self.params.checkpoint != "best":
            return None
        recipe, noise = self.params.synthesis_recipe(), noise.at(_HELD_OUT_SITE)
        if isinstance(recipe, FieldRecipe):
            return _tagged(synthetic_images(classifier, access.shape, recipe, noise))
        # A whole batch of them for each class where a batch has only one, else enough to have all
        # classes among random ones.
        classes = classifier.num_classes
        fewest = (
            classes * recipe.batch
            if recipe.targets == "per_batch"
            else max(recipe.batch, 10 * classes)
        )
        recipe = replace(recipe, images=max(round(HELD_OUT * recipe.images), fewest))
        return _tagged(synthetic_images(classifier, access.shape, recipe, noise))

    def _note(self, made: SyntheticImages) -> str:
        sizes, about = self.params.sizes, made.about
        if self.params.synthesis == "fields":
            return (
                f"trained for {sizes.epochs} epochs on {sizes.images} random fields drawn towards "
                f"the classifier's BatchNorm statistics, off by {about['gap_first']:.1f} at first "
                f"and by {about['gap_last']:.1f} at last; not DataFreeShield's synthesis: the "
                "distribution of the fields (smooth, cut, windowed) was written down by hand"
            )
        whole, step = self.params.training_recipe.whole, about["recipe"]["rate"]
        synthesis, training = map(percent, sizes.shares_of(whole))
        return (
            f"trained on {sizes.images} images that the classifier made itself, {sizes.iterations} "
            f"iterations of step {step:.3g} each, for {sizes.epochs} epochs (scale "
            f"{self.params.scale}: {synthesis} of the published synthesis and {training} of the "
            f"training, which have {whole.images} images, {whole.iterations} iterations, "
            f"{whole.epochs} epochs); the classifier is right on "
            f"{100 * about['accuracy']:.1f} % of them, "
            f"{100 * about['accuracy_before_clamping']:.1f} % before clamping"
        )


_IMAGES_SITE, _HELD_OUT_SITE = "seed0", "held-out0"
"""Where the construction noise is read for the images, and for those that choose the epoch."""


def _tagged(made: SyntheticImages) -> TaggedImages:
    """Labelled by the classes aimed at; random fields by the classifier's answers."""
    return TaggedImages(made.images, made.labels, Tag.SYNTHETIC)
