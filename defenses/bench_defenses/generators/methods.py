"""The four methods as tables over the loop, and the scales that they come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bench_defenses.adversarial.objectives import Ait, Dast, Dfard, Dfme, Match
from bench_defenses.generators.adaptation import BalancedTerms, LabelWeight, NoAdaptation
from bench_defenses.generators.loop import BatchNormMode
from bench_defenses.generators.nets import GeneratorSpec


@dataclass(frozen=True)
class Method:
    """What one method differs by.

    Attributes:
        fidelity: how near it is to what was published.
        generator: latent vector and conditioning; the decoder is the same for all.
        terms: of the generator, by weight.
        objective: the student's.
        adaptation: what is adapted on the way.
        ratio, shared, momentum: see `bench_defenses.generators.loop.PairSchedule`.
        batchnorm_mode: see `bench_defenses.generators.loop.Plan`. Running statistics lag behind a
            generator that steps after each update of the student: DaST's then gains by shifting
            them, against which no update of the student helps.
        warms: whether the generator learns alone at first. One that only works against the student
            must not: while the student does not move, it runs off to images of one class that no
            student follows.
        from_scratch: whether the published student starts from fresh weights.
        unattacked: settings of a student that meets no attack, which is what the method was
            published for, where they are not DFME's.
        paper: settings under recipe=paper.
        decoder: fields of the generator under recipe=paper.
    """

    fidelity: str
    generator: GeneratorSpec
    terms: Mapping[str, float]
    objective: type[Match]
    adaptation: type[NoAdaptation] = NoAdaptation
    ratio: int = 1
    shared: Literal["no", "student-first", "generator-first"] = "no"
    momentum: float = 0.9
    batchnorm_mode: BatchNormMode = "running"
    warms: bool = False
    from_scratch: bool = True
    unattacked: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)
    decoder: Mapping[str, Any] = field(default_factory=dict)


_PLAIN: dict[str, Any] = {"decay": 0.0, "schedule": "const", "warmup": 0.0, "clip": 0.0}

_DFME: dict[str, Any] = {
    **_PLAIN,
    "rate": 0.1,
    "decay": 5e-4,
    "milestones": (0.1, 0.3, 0.5),
    "drop": 0.3,
}
"""DFME's published schedule; the generator slows down with its student, or it runs away from one
that hardly moves.
"""

_STUDENT: dict[str, Any] = {
    "from_scratch": False,
    "optimiser": "sgd",
    "rate": 0.0,
    "decay": 1e-4,
    "schedule": "const",
    "warmup": 0.25,
    "clip": 1.0,
    "bn": "train",
}
"""The student is trained as DataFreeShield's is."""

METHODS = {
    "dast": Method(
        fidelity="adapted: a projection for each class in place of its stack of deconvolutions",
        generator=GeneratorSpec(size=128, conditioning="branch"),
        terms={"agreement": 1.0, "student_class": 0.2},
        objective=Dast,
        adaptation=LabelWeight,
        shared="student-first",
        momentum=0.5,
        batchnorm_mode="batch",
        unattacked={"optimiser": "adam", "rate": 1e-3, "decay": 0.0, "milestones": (0.8,)},
        paper={
            **_PLAIN,
            "updates": 100_000,
            "batch": 500,
            "generator_rate": 1e-4,
            "optimiser": "adam",
            "rate": 1e-4,
            "from_scratch": True,
        },
        decoder={"decoder": "dast_paper"},
    ),
    "dfme": Method(
        fidelity="adapted: the exact gradient through classifier and student, which is data-free "
        "adversarial distillation (DFAD)",
        generator=GeneratorSpec(size=256),
        terms={"closeness_l1": 1.0},
        objective=Dfme,
        ratio=5,
        paper={
            **_DFME,
            "updates": 56_000,
            "batch": 256,
            "generator_rate": 1e-4,
            "from_scratch": True,
        },
        decoder={"affine": False},
    ),
    "ait": Method(
        fidelity="adapted: GDFQ's generator, no gradient inundation, for nothing is quantised",
        generator=GeneratorSpec(size=100, conditioning="embed_mul"),
        terms={"teacher_class": 1.0, "bn_mse": 0.1},
        objective=Ait,
        shared="generator-first",
        momentum=0.5,
        warms=True,
        from_scratch=False,
        unattacked={**_STUDENT, "milestones": ()},
        paper={
            **_PLAIN,
            "updates": 80_000,
            "batch": 200,
            "generator_warmup": 800,
            "rate": 1e-4,
            "bn": "frozen",
            "milestones": (0.25, 0.5, 0.75),
            "drop": 0.1,
        },
        decoder={"affine": False, "bn_eps": 0.8},
    ),
    "dfard": Method(
        fidelity="approximate: only the abstract is known here; a stand-in out of DFQ's generator "
        "terms and RSLAD",
        generator=GeneratorSpec(size=256, conditioning="embed_mul"),
        terms={"teacher_class": 1.0, "bn_l2": 1.0, "closeness_kl": 1.0},
        objective=Dfard,
        adaptation=BalancedTerms,
        ratio=5,
        warms=True,
        paper={
            **_PLAIN,
            "updates": 80_000,
            "batch": 256,
            "generator_warmup": 4_000,
            "generator_rate": 2e-3,
            "rate": 0.1,
        },
    ),
}


@dataclass(frozen=True)
class Settings:
    """The numbers of a run.

    Attributes:
        updates, batch: of the student, and images in each.
        width: of the generator's decoder.
        generator_rate, generator_warmup: Adam's step size, and steps before the student's first
            update.
        from_scratch: whether the student starts from fresh weights.
        optimiser, rate, decay, schedule, warmup, clip, bn: see
            `bench_defenses.adversarial.training_step.Descent`; rate 0: `BUDGET` / updates.
        milestones, drop: see `bench_defenses.generators.loop.PairSchedule`.
    """

    updates: int
    batch: int
    width: int
    generator_rate: float
    generator_warmup: int
    from_scratch: bool
    optimiser: Literal["sgd", "adam"]
    rate: float
    decay: float
    schedule: Literal["const", "cosine"]
    warmup: float
    clip: float
    bn: Literal["train", "frozen"]
    milestones: tuple[float, ...] = ()
    drop: float = 1.0


SCALES: dict[str, dict[str, Any]] = {
    "quick": {
        **_STUDENT,
        "updates": 400,
        "batch": 50,
        "width": 32,
        "generator_rate": 1e-3,
        "generator_warmup": 100,
    },
    "full": {
        **_STUDENT,
        "updates": 60_000,
        "batch": 200,
        "width": 128,
        "generator_rate": 1e-3,
        "generator_warmup": 1_000,
    },
}
"""The shared recipe by scale: the budget is that of `datafreeshield` at the same scale."""

UNATTACKED: dict[str, dict[str, Any]] = {
    "quick": {**_DFME, "updates": 3_000, "width": 16},
    "full": {**_DFME, "updates": 60_000},
}
"""What differs where the student meets no attack."""

_PAPER = {**SCALES["full"], "generator_warmup": 0}


def paper_settings(method: Method, attacked: bool, given: Mapping[str, Any]) -> Settings:
    """What was given, else what the method was published with, else the shared recipe's."""
    values = {**_PAPER, **_start(method, attacked), **method.paper}
    return Settings(**{**values, **given})


def shared_settings(
    method: Method, scale: str, attacked: bool, given: Mapping[str, Any]
) -> Settings:
    """What was given, else the shared recipe's at this scale."""
    values = dict(SCALES[scale])
    if not attacked:
        values |= {**UNATTACKED[scale], **method.unattacked}
    if not method.warms:
        values["generator_warmup"] = 0
    return Settings(**{**values, **_start(method, attacked), **given})


def _start(method: Method, attacked: bool) -> dict[str, bool]:
    return {} if attacked else {"from_scratch": method.from_scratch}
