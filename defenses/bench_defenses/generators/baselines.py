"""`dast`, `dfme`, `ait`, `dfard`: data-free methods made into robust training of a student on a
generator's images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from bench.defense import BuildSetting, Card, DataAccess, DefendedClassifier, Defense
from bench.errors import BadInput
from bench.noise import BuildNoise
from bench.spec import Params, nested, parse, read_params, unnest
from bench_defenses.adversarial.objectives import Match, ObjectiveSpec, read_objective
from bench_defenses.adversarial.params import ATTACKS, TrainingEps, training_ball
from bench_defenses.adversarial.students import trained_student
from bench_defenses.adversarial.tagged_images import Tag, TaggedImages
from bench_defenses.adversarial.trainer import StudentTraining
from bench_defenses.adversarial.training_step import Descent, logits_of
from bench_defenses.datafree.datafreeshield import BUDGET, DataFreeShieldParams, percent
from bench_defenses.datafree.synthesis import norm_layers
from bench_defenses.generators.inundation import Inundation
from bench_defenses.generators.loop import PairSchedule, Plan
from bench_defenses.generators.methods import (
    METHODS,
    SCALES,
    Method,
    Settings,
    paper_settings,
    shared_settings,
)
from bench_defenses.generators.nets import Architecture
from bench_defenses.generators.terms import MEASURES, ZerothOrder
from bench_defenses.generators.trained_pair import Pair, samples, trained_pair

_OF_STAGES = ("images", "epochs", "objective")
_OF_ATTACK = ("eps", "steps", "warmup", "clean_weight")


def _share(updates: int, batch: int) -> float:
    """Of the images that the student is trained on at the full scale."""
    full = SCALES["full"]
    return updates * batch / float(full["updates"] * full["batch"])


class BaselineParams(Params):
    """Parameters of all of them. What is left out is the scale's or the recipe's.

    `batch` and the fields from `optimiser` to `bn` are of the student that the generator learns
    beside. In two stages that one is thrown away, and the deployed one is trained by the schedule
    of `datafreeshield`.
    """

    scale: Literal["quick", "full"] = Field(
        "quick",
        description="how much is computed: quick takes minutes on two cores, full has the budget "
        "of datafreeshield's published training, of which quick has "
        + percent(_share(**{name: SCALES["quick"][name] for name in ("updates", "batch")})),
    )
    recipe: Literal["shared", "paper"] = Field(
        "shared",
        description="how: by the rules of datafreeshield's student, the same for all four; or as "
        "each method was published, at its own scale",
    )
    mode: Literal["online", "staged"] = Field(
        "online",
        description="the student meets attacked images while the generator learns; or the "
        "generator learns first, as published",
    )
    adversarial: bool = Field(
        True,
        description="off: a student trained without adversarial examples, which is what the "
        "methods were published for",
    )
    clean_weight: float | None = Field(
        None, ge=0, description="weight of the same term at the clean image; 0, dfard 1/6"
    )
    from_scratch: bool | None = Field(
        None, description="start from fresh weights instead of the classifier's"
    )
    updates: int | None = Field(
        None, ge=1, description="updates of the student that the generator learns beside"
    )
    batch: int | None = Field(None, ge=2, description="images a batch")
    width: int | None = Field(None, ge=2, description="channels of the generator's first maps")
    generator_rate: float | None = Field(
        None, gt=0, description="Adam's step size on the generator"
    )
    generator_warmup: int | None = Field(
        None, ge=0, description="steps of the generator before the student's first update"
    )
    eps: TrainingEps = Field(
        "auto", description="radius of the training ball; auto = the announced threat's"
    )
    steps: int = Field(
        10, ge=1, le=1000, description="steps of the inner attack, of length 2.5 eps/steps each"
    )
    optimiser: Literal["sgd", "adam"] | None = Field(
        None,
        description="of the student beside the generator: SGD with Nesterov momentum 0.9, or Adam",
    )
    rate: float | None = Field(
        None, gt=0, description="that student's learning rate; recipe=shared: 6 / updates"
    )
    decay: float | None = Field(None, ge=0, description="that student's weight decay")
    schedule: Literal["const", "cosine"] | None = Field(
        None, description="schedule of the student's learning rate"
    )
    warmup: float | None = Field(
        None, ge=0, le=1, description="share of the training in which eps rises to its value"
    )
    clip: float | None = Field(
        None, ge=0, description="largest gradient norm of a batch; 0 = no limit"
    )
    bn: Literal["train", "frozen"] | None = Field(
        None, description="BatchNorm learns from the batches, or stays as it came"
    )
    images: int | None = Field(
        None, ge=1, description="staged: images that the trained generator makes"
    )
    epochs: int | None = Field(None, ge=1, description="staged: passes over them")
    objective: ObjectiveSpec | None = Field(
        None, description="staged: any objective, with its parameters; datafreeshield by default"
    )

    @model_validator(mode="after")
    def _no_field_is_idle(self) -> BaselineParams:
        staged, off = self.mode == "staged", not self.adversarial
        if staged and off:
            raise ValueError("adversarial=off belongs to mode=online: drop one of them")
        idle = {
            "mode=staged": () if staged else _OF_STAGES,
            "mode=online": ("clean_weight", "warmup") if staged else (),
            "adversarial=on": _OF_ATTACK if off else (),
            "recipe=shared": ("scale",) if self.recipe == "paper" else (),
        }
        for where, names in idle.items():
            for name in sorted(self.model_fields_set & set(names)):
                raise ValueError(f"{name} belongs to {where}: drop it")
        return self

    @property
    def attacked(self) -> bool:
        """Whether the student that the generator learns beside meets attacks."""
        return self.adversarial and self.mode == "online"


_OF_SETTINGS = (
    *("updates", "batch", "width", "generator_rate", "generator_warmup"),
    *("optimiser", "rate", "decay", "schedule", "warmup", "clip", "bn"),
)

P = TypeVar("P", bound=BaselineParams)
Q = TypeVar("Q", bound=Params)


class Baseline(Defense[P]):
    """Base of the four; a subclass names its method, and may change the plan by its own
    parameters.
    """

    method: ClassVar[Method]

    def check(self, setting: BuildSetting) -> None:
        """Raise `BadInput` for a classifier that is random, or lacks the BatchNorm it learns
        from.
        """
        self._check(setting.classifier)

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The trained student."""
        self._check(classifier)
        pair = self._pair(classifier, access, noise)
        student = (
            pair.student
            if self.params.mode == "online"
            else self._second_stage(classifier, pair, access, noise)
        )
        student.notes = (*self._notes(pair, access), *student.notes)
        return student

    @property
    def makes_images(self) -> bool:
        """Whether the deployed student is trained on one set of images; online it meets new ones in
        every batch.
        """
        return self.params.mode == "staged"

    def training_images(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> tuple[Tensor, Tensor]:
        """The images (n, C, H, W) in [0, 1] that the deployed student of two stages is trained on,
        and the classifier's answers (n,) to them; on the CPU.
        """
        self._check(classifier)
        pair = self._pair(classifier, access, noise)
        made = self._second_images(classifier, pair, access, noise)
        return made, logits_of(classifier, made).argmax(1).cpu()

    def plan(self, access: DataAccess) -> Plan:
        """How generator and student are trained."""
        method, chosen, params = self.method, self._settings(), self.params
        spec = replace(method.generator, width=chosen.width)
        return Plan(
            generator=replace(spec, **method.decoder) if params.recipe == "paper" else spec,
            terms=method.terms,
            objective=self._objective(),
            descent=_descent(chosen, params.steps),
            schedule=_schedule(method, chosen),
            threat=training_ball(params.eps, access.threat),
            shape=access.shape,
            batchnorm_mode=method.batchnorm_mode if chosen.bn == "train" else "running",
        )

    def fidelity(self) -> str:
        """How near it is to what was published."""
        return self.method.fidelity

    def objective_params(self) -> dict[str, Any]:
        """Parameters of the student's objective that the defense offers."""
        return {}

    def _pair(self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise) -> Pair:
        fresh = self._settings().from_scratch
        return trained_pair(classifier, self.plan(access), self.method.adaptation, fresh, noise)

    def _settings(self) -> Settings:
        params = self.params
        given = {
            name: getattr(params, name)
            for name in _OF_SETTINGS
            if getattr(params, name) is not None
        }
        # In two stages it is about the student that is deployed, not about the one that the
        # generator learns beside.
        if params.mode == "online" and params.from_scratch is not None:
            given["from_scratch"] = params.from_scratch
        if params.recipe == "paper":
            return paper_settings(self.method, params.attacked, given)
        return shared_settings(self.method, params.scale, params.attacked, given)

    def _objective(self) -> Match:
        if not self.params.attacked:
            return self.method.objective(adversarial=0.0, clean=1.0, **self.objective_params())
        weights = {} if self.params.clean_weight is None else {"clean": self.params.clean_weight}
        return self.method.objective(**weights, **self.objective_params())

    def _check(self, classifier: DefendedClassifier) -> None:
        if classifier.stochastic:
            raise BadInput(
                "a student is trained on a deterministic classifier, but this one draws random "
                "numbers: give another"
            )
        if set(self.method.terms) & set(MEASURES) and not norm_layers(classifier):
            raise BadInput(
                "this generator learns from the classifier's BatchNorm statistics, but it has no "
                "BatchNorm layer that keeps them: "
                "give a classifier with BatchNorm, or use dast or dfme"
            )

    # Two stages

    def _second_stage(
        self, classifier: DefendedClassifier, pair: Pair, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """A student trained on a set of the generator's images, as `datafreeshield` trains
        its own.
        """
        stage = self._second_params()
        made = self._second_images(classifier, pair, access, noise)
        training = StudentTraining(
            images=TaggedImages(made, None, Tag.SYNTHETIC),
            objective=read_objective(stage.objective or stage.training_recipe.objective),
            schedule=stage.training_params().training_schedule(),
            threat=training_ball(self.params.eps, access.threat),
            from_scratch=bool(self.params.from_scratch),
        )
        return trained_student(classifier, training, noise, self.needs)

    def _second_images(
        self, classifier: DefendedClassifier, pair: Pair, access: DataAccess, noise: BuildNoise
    ) -> Tensor:
        count = self._second_params().sizes.images
        return samples(pair.generator, classifier, self.plan(access), count, noise)

    def _second_params(self) -> DataFreeShieldParams:
        params = self.params
        given = {
            name: getattr(params, name) for name in _OF_STAGES if getattr(params, name) is not None
        }
        scale: Literal["quick", "full"] = "full" if params.recipe == "paper" else params.scale
        return DataFreeShieldParams(scale=scale, steps=params.steps, **given)

    # Notes

    def _notes(self, pair: Pair, access: DataAccess) -> tuple[str, ...]:
        plan, passes, last = self.plan(access), pair.about["passes"], pair.about["rounds"][-1]
        params, schedule = self.params, plan.schedule
        share = percent(_share(schedule.updates, schedule.batch))
        settings = (
            "recipe paper"
            if params.recipe == "paper"
            else f"scale {params.scale}, {share} of the training at the full one"
        )
        start = _start(self._settings().from_scratch)
        notes = [
            f"fidelity {self.fidelity()}",
            f"{settings}, mode {params.mode}: the generator made "
            f"{passes['images']} images and took {passes['generator steps']} steps beside a "
            f"student from {start} with {schedule.updates} updates of {schedule.batch} images, "
            f"{passes.get('attacked images', 0)} adversarial images, clean weight "
            f"{plan.objective.clean:.3g}; queries of the classifier as a black box: "
            f"{self._queries(plan, passes)}",
            f"the classifier's answers to the last batches: class entropy {last['entropy']:.2f} of "
            f"1, largest share {100 * last['largest_share']:.0f} %; distance between images "
            f"{last['distance']:.3f}",
            "the last student is kept; no test or training image chose anything",
        ]
        if params.mode == "staged":
            notes.append(f"the deployed student starts from {_start(bool(params.from_scratch))}")
        return tuple(notes)

    def _queries(self, plan: Plan, passes: dict[str, int]) -> str:
        return (
            "n/a, its gradient is used"
            if plan.estimator is None
            else str(passes["teacher forwards"])
        )


def _start(from_scratch: bool) -> str:
    return "fresh weights" if from_scratch else "the classifier's weights"


def _descent(chosen: Settings, steps: int) -> Descent:
    return Descent(
        optimiser=chosen.optimiser,
        rate=chosen.rate or BUDGET / chosen.updates,
        decay=chosen.decay,
        schedule=chosen.schedule,
        warmup=chosen.warmup,
        clip=chosen.clip,
        steps=steps,
        bn=chosen.bn,
    )


def _schedule(method: Method, chosen: Settings) -> PairSchedule:
    return PairSchedule(
        updates=chosen.updates,
        batch=chosen.batch,
        ratio=method.ratio,
        shared=method.shared,
        warmup=chosen.generator_warmup,
        rate=chosen.generator_rate,
        momentum=method.momentum,
        milestones=chosen.milestones,
        drop=chosen.drop,
    )


# The four -----------------------------------------------------------------------------------------


class DastParams(BaselineParams):
    """Parameters of `dast`."""

    beta: float = Field(
        0.1, ge=0, description="weight of the squared distance of probabilities; 0: labels alone"
    )
    decoder: Architecture | None = Field(
        None,
        description="shared by all four; dast_paper: the published stacks, far more expensive",
    )

    @model_validator(mode="after")
    def _width_of_the_shared_one(self) -> DastParams:
        if self.published and self.width is not None:
            raise ValueError("width belongs to decoder=shared: drop it")
        return self

    @property
    def published(self) -> bool:
        """Whether the generator is DaST's own."""
        return self.decoder == "dast_paper" or (self.decoder is None and self.recipe == "paper")


class DastDefense(Baseline[DastParams]):
    """DaST: a generator with a branch for each class looks for images that the student gets
    wrong.
    """

    Params = DastParams
    method = METHODS["dast"]
    card = Card(
        paper="Zhou et al., CVPR 2020, arXiv 2003.12703",
        note="published to copy a black box; here its student meets attacked images (adapted)",
        attacks=ATTACKS,
    )

    def objective_params(self) -> dict[str, Any]:
        """beta."""
        return {"beta": self.params.beta}

    def plan(self, access: DataAccess) -> Plan:
        """With the decoder asked for."""
        plan, decoder = super().plan(access), self.params.decoder
        return (
            plan
            if decoder is None
            else replace(plan, generator=replace(plan.generator, decoder=decoder))
        )

    def fidelity(self) -> str:
        """The published generator is an option."""
        return "adapted: DaST's own generator" if self.params.published else super().fidelity()


def _extra(text: str, plain: str, name: str, kind: type[Q], example: str) -> Q | None:
    """The parameters of an option `name:key=value`; None for its plain value."""
    if text == plain:
        return None
    spec = parse(unnest(text))
    if spec.name != name:
        raise ValueError(f"write {plain}, or {example}")
    return read_params(kind, spec, repr(name))


class _ZerothOrderParams(Params):
    m: int = Field(1, ge=1, description="directions")
    eps: float = Field(1e-3, gt=0, description="length of the difference")


def _read_gradient(text: str) -> ZerothOrder | None:
    """`exact`, or `zeroth_order:m=1,eps=0.001`."""
    chosen = _extra(text, "exact", "zeroth_order", _ZerothOrderParams, "zeroth_order:m=1")
    return None if chosen is None else ZerothOrder(chosen.m, chosen.eps)


def _gradient(text: str) -> str:
    _read_gradient(text)
    return nested(text)


class DfmeParams(BaselineParams):
    """Parameters of `dfme`."""

    gradient: Annotated[str, AfterValidator(_gradient)] | None = Field(
        None, description="exact, or as published zeroth_order:m=1; recipe=paper has the latter"
    )

    @property
    def estimator(self) -> ZerothOrder | None:
        """None for the exact gradient."""
        return _read_gradient(
            self.gradient or ("zeroth_order" if self.recipe == "paper" else "exact")
        )


class DfmeDefense(Baseline[DfmeParams]):
    """DFME: a generator looks for images on which student and classifier differ, the student
    takes five updates in return.
    """

    Params = DfmeParams
    method = METHODS["dfme"]
    card = Card(
        paper="Truong et al., CVPR 2021, arXiv 2011.14779",
        note="published to copy a black box; here its student meets attacked images, and the "
        "exact gradient makes it DFAD",
        attacks=ATTACKS,
    )

    def plan(self, access: DataAccess) -> Plan:
        """With the estimator."""
        return replace(super().plan(access), estimator=self.params.estimator)

    def fidelity(self) -> str:
        """The published gradient is an option."""
        estimator = self.params.estimator
        return (
            super().fidelity()
            if estimator is None
            else f"adapted: zeroth-order gradient, m={estimator.m}"
        )


class _VirtualParams(Params):
    bits: int = Field(4, ge=1, le=16, description="of the grid")


def _read_inundation(text: str) -> Inundation | None:
    """`off`, or `virtual:bits=4`."""
    chosen = _extra(text, "off", "virtual", _VirtualParams, "virtual:bits=4")
    return None if chosen is None else Inundation(chosen.bits)


def _inundation(text: str) -> str:
    _read_inundation(text)
    return nested(text)


class AitParams(BaselineParams):
    """Parameters of `ait`."""

    temperature: float = Field(20.0, gt=0, description="of the student's objective")
    inundation: Annotated[str, AfterValidator(_inundation)] = Field(
        "off",
        description="off: nothing is quantised; virtual:bits=4 lengthens steps by a grid that is "
        "not there, an extension",
    )


class AitDefense(Baseline[AitParams]):
    """AIT: a generator makes images of given classes with the BatchNorm statistics, the student
    learns soft answers.
    """

    Params = AitParams
    method = METHODS["ait"]
    card = Card(
        paper="Choi et al., CVPR 2022, arXiv 2203.17008; generator: GDFQ, Xu et al., ECCV 2020, "
        "arXiv 2003.03603",
        note="published to fine-tune a quantised copy; here its student meets attacked images "
        "(adapted)",
        attacks=ATTACKS,
    )

    def objective_params(self) -> dict[str, Any]:
        """The temperature."""
        return {"temperature": self.params.temperature}

    def plan(self, access: DataAccess) -> Plan:
        """With gradient inundation where it is asked for."""
        return replace(super().plan(access), inundation=_read_inundation(self.params.inundation))

    def fidelity(self) -> str:
        """The virtual grid is an extension."""
        if self.params.inundation == "off":
            return super().fidelity()
        return (
            "adapted: GDFQ's generator, gradient inundation of a virtual grid, which is no "
            "part of AIT"
        )


class DfardDefense(Baseline[BaselineParams]):
    """DFARD, a stand-in: a class-conditional generator with balanced terms, a student that learns
    soft labels at a moving temperature.
    """

    Params = BaselineParams
    method = METHODS["dfard"]
    card = Card(
        paper="after the abstract of Wang et al., AAAI 2024, arXiv 2303.11611",
        stand_in=True,
        note="fidelity approximate: equations, schedule and generator are stand-ins, and the "
        "classifier is no robust teacher",
        attacks=ATTACKS,
    )
