"""Trained students as artifacts: trained once for a classifier, images, objective, schedule, threat
and seed, then loaded.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from bench.defense import DefendedClassifier, Need
from bench.engine.fingerprint import fingerprint
from bench.engine.progress import Steps
from bench.errors import BadInput
from bench.models.training import device_of
from bench.noise import Noise, isolated
from bench.storage.artifacts import artifact
from bench.storage.files import write_whole
from bench.threat import ThreatModel
from bench_defenses.adversarial.objectives import Objective, objective_name
from bench_defenses.adversarial.source import Source
from bench_defenses.adversarial.trainer import (
    STATE,
    Epoch,
    Schedule,
    Trained,
    epochs_done,
    train_student,
)

VERSION = 1
"""Raise it when the trainer's numbers may change."""

_WEIGHTS, _LOG = "student.safetensors", "training.json"


@dataclass(frozen=True)
class Lesson:
    """What a student learns.

    Attributes:
        images: what to train on.
        held_out: images of the same source that choose the epoch under checkpoint=best; None for
            none.
        objective: what to minimise.
        schedule: how.
        threat: the ball of the inner attack.
        from_scratch: whether the student starts from fresh weights instead of the teacher's.
    """

    images: Source
    held_out: Source | None
    objective: Objective
    schedule: Schedule
    threat: ThreatModel
    from_scratch: bool = False


def taught(
    classifier: DefendedClassifier, lesson: Lesson, noise: Noise, needs: Collection[Need]
) -> DefendedClassifier:
    """The student of `classifier`, frozen, in evaluation mode: out of the cache, or trained now.

    Args:
        classifier: the teacher, in evaluation mode; it is not changed.
        lesson: what to learn.
        noise: one row of the construction stream.
        needs: the data that the defense declared.
    """

    def make(work: Path) -> None:
        done = _train(classifier, lesson, noise, needs, work)
        write_whole(work / _WEIGHTS, packed(done.student))
        log = {"kept": done.kept.done, "epochs": [asdict(epoch) for epoch in done.history]}
        write_whole(work / _LOG, json.dumps(log, indent=1).encode())
        (work / STATE).unlink(missing_ok=True)

    folder = artifact("students", _identity(classifier, lesson, noise), make)
    student = loaded(classifier, folder / _WEIGHTS)
    student.notes = (_scale(lesson),)
    return student


def packed(module: nn.Module) -> bytes:
    """A module's state as a safetensors file."""
    return safetensors.torch.save(
        {key: value.cpu().clone().contiguous() for key, value in module.state_dict().items()}
    )


def loaded(classifier: DefendedClassifier, weights: Path) -> DefendedClassifier:
    """A copy of the classifier with the weights of a safetensors file, frozen, in
    evaluation mode.
    """
    student = copy.deepcopy(classifier)
    student.load_state_dict(safetensors.torch.load_file(weights))
    return student.to(device_of(classifier)).eval().requires_grad_(False)


def _scale(lesson: Lesson) -> str:
    images = (
        f"{lesson.images.tag} images: {len(lesson.images.images)}, epochs: {lesson.schedule.epochs}"
    )
    return f"trained by {objective_name(lesson.objective)} inside {lesson.threat}; {images}"


def _train(
    classifier: DefendedClassifier,
    lesson: Lesson,
    noise: Noise,
    needs: Collection[Need],
    work: Path,
) -> Trained:
    student = copy.deepcopy(classifier)
    if lesson.from_scratch:
        reset(student, noise.seed("fresh weights"))
    what = f"training a student by {objective_name(lesson.objective)}, epochs"
    with Steps(what, lesson.schedule.epochs, epochs_done(work)) as steps:
        return train_student(
            student,
            classifier,
            lesson.images,
            lesson.objective,
            lesson.schedule,
            lesson.threat,
            noise,
            needs=needs,
            held_out=lesson.held_out,
            folder=work,
            report=lambda epoch: steps(epoch.done, _note(epoch)),
        )


def _note(epoch: Epoch) -> str:
    agreement = (
        "" if epoch.agreement is None else f", agreement under PGD {100 * epoch.agreement:.1f} %"
    )
    return f"mean loss {epoch.loss:.4f}{agreement}"


def reset(student: DefendedClassifier, seed: int) -> None:
    """Fresh weights in place, as torch initialises each layer. Raises `BadInput` for weights of a
    layer that cannot do so.
    """
    owners = {name.rpartition(".")[0] for name, _ in student.named_parameters()}
    with isolated(seed):
        for name in sorted(owners):
            module = student.get_submodule(name)
            again = getattr(module, "reset_parameters", None)
            if not callable(again):
                raise BadInput(
                    f"the layer {name or 'at the top'} has no fresh weights to start from: leave "
                    "from_scratch out"
                )
            again()


def _identity(classifier: DefendedClassifier, lesson: Lesson, noise: Noise) -> dict[str, object]:
    return {
        "version": VERSION,
        "classifier": fingerprint(classifier),
        "images": _described(lesson.images),
        "held_out": None if lesson.held_out is None else _described(lesson.held_out),
        "objective": {
            "name": objective_name(lesson.objective),
            **lesson.objective.model_dump(mode="json"),
        },
        "schedule": asdict(lesson.schedule),
        "threat": asdict(lesson.threat),
        "from_scratch": lesson.from_scratch,
        "seed": noise.seed("student"),
    }


def _described(source: Source) -> dict[str, object]:
    labels = None if source.labels is None else _sha256(source.labels)
    return {
        "tag": str(source.tag),
        "shape": list(source.images.shape),
        "pixels": _sha256(source.images),
        "labels": labels,
    }


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()
