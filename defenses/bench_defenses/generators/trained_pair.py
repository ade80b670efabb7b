"""A student and its generator as an artifact: trained once for a classifier, a plan and a seed,
then loaded.

- `student.safetensors`, `generator.safetensors`: the weights at the end
- `training.json`: the passes of each network, and the log, an entry a round
- `sheet.png`: a few of the generator's images for each class that the classifier sees in them
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bench.defense import DefendedClassifier
from bench.engine.fingerprint import fingerprint
from bench.engine.progress import Steps
from bench.models.training import device_of
from bench.noise import BuildNoise
from bench.storage.artifacts import artifact
from bench.storage.files import write_whole
from bench_defenses.adversarial.objectives import Match, objective_name
from bench_defenses.adversarial.students import loaded, packed, reset
from bench_defenses.adversarial.training_step import logits_of
from bench_defenses.datafree.sheet import contact_sheet
from bench_defenses.datafree.synthesis import normalisation
from bench_defenses.generators.adaptation import NoAdaptation
from bench_defenses.generators.loop import (
    STATE,
    PairResult,
    Plan,
    Round,
    sampled,
    steps_done,
    steps_of,
    train_pair,
)
from bench_defenses.generators.nets import Generator

VERSION = 1
"""Raise it when the loop's numbers may change."""

STUDENT, GENERATOR, LOG, SHEET = (
    "student.safetensors",
    "generator.safetensors",
    "training.json",
    "sheet.png",
)

_SHOWN = 240


@dataclass(frozen=True)
class Pair:
    """The student, frozen, in evaluation mode; the generator; `training.json`; the
    artifact's folder.
    """

    student: DefendedClassifier
    generator: Generator
    about: Mapping[str, Any]
    folder: Path


def trained_pair(
    classifier: DefendedClassifier,
    plan: Plan,
    adaptation: type[NoAdaptation],
    from_scratch: bool,
    noise: BuildNoise,
) -> Pair:
    """The student and the generator, out of the cache or trained now.

    Args:
        classifier: the teacher, in evaluation mode; it is not changed.
        plan: how.
        adaptation: what is adapted on the way.
        from_scratch: whether the student starts from fresh weights.
        noise: one row of the construction stream.
    """
    plan.generator.check(plan.shape, classifier.num_classes, plan.schedule.batch)

    def make(work: Path) -> None:
        student = copy.deepcopy(classifier)
        if from_scratch:
            reset(student, noise.seed("fresh weights"))
        with Steps(
            "training a generator and a student, steps", steps_of(plan.schedule), steps_done(work)
        ) as steps:
            done = train_pair(
                student,
                classifier,
                plan,
                adaptation(plan.terms),
                noise,
                folder=work,
                report=lambda done: steps(done.step, _note(done)),
            )
        _write(work, done, classifier, plan, noise)

    folder = artifact(
        "generator-students",
        _identity(classifier, plan, adaptation, from_scratch, noise),
        make,
    )
    return _read(folder, classifier, plan)


def _note(done: Round) -> str:
    return (
        "generator alone"
        if done.loss is None
        else f"mean loss {done.loss:.4f}, class entropy {done.entropy:.2f}"
    )


def _write(
    work: Path, done: PairResult, classifier: DefendedClassifier, plan: Plan, noise: BuildNoise
) -> None:
    write_whole(work / STUDENT, packed(done.student))
    write_whole(work / GENERATOR, packed(done.generator))
    log = {"passes": done.passes, "rounds": [asdict(one) for one in done.rounds]}
    write_whole(work / LOG, (json.dumps(log, indent=1) + "\n").encode())
    shown = samples(done.generator, classifier, plan, _SHOWN, noise)
    write_whole(work / SHEET, contact_sheet(shown, logits_of(classifier, shown).argmax(1).cpu()))
    (work / STATE).unlink(missing_ok=True)


def samples(
    generator: Generator, classifier: DefendedClassifier, plan: Plan, count: int, noise: BuildNoise
) -> Tensor:
    """Images (count, C, H, W) of a trained generator, on the CPU; `noise` is one row of the
    construction stream.
    """
    parts = sampled(
        generator, plan.generator, count, plan.schedule.batch, classifier.num_classes, noise
    )
    return torch.cat([part.cpu() for part in parts])


def _identity(
    classifier: DefendedClassifier,
    plan: Plan,
    adaptation: type[NoAdaptation],
    from_scratch: bool,
    noise: BuildNoise,
) -> dict[str, object]:
    return {
        "version": VERSION,
        "classifier": fingerprint(classifier),
        "plan": {name: _plain(value) for name, value in vars(plan).items()},
        "adaptation": adaptation.__name__,
        "from_scratch": from_scratch,
        "noise": noise.identity,
    }


def _plain(value: Any) -> object:
    """A field of a plan as JSON takes it."""
    if isinstance(value, Match):
        return {"name": objective_name(value), **value.model_dump(mode="json")}
    if isinstance(value, Mapping):
        return dict(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _read(folder: Path, classifier: DefendedClassifier, plan: Plan) -> Pair:
    mean, std = (value.flatten() for value in normalisation(classifier))
    generator = plan.generator.build(plan.shape, classifier.num_classes, 0, mean, std)
    generator.load_state_dict(safetensors.torch.load_file(folder / GENERATOR))
    about = json.loads((folder / LOG).read_bytes())
    return Pair(
        loaded(classifier, folder / STUDENT), generator.to(device_of(classifier)), about, folder
    )
