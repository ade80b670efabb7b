"""Trained students as artifacts: trained once for a classifier, images, objective, schedule, threat
and seed, then loaded.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from bench.defense import DefendedClassifier, Need
from bench.engine.fingerprint import fingerprint
from bench.engine.progress import Steps
from bench.errors import BadInput
from bench.models.training import device_of
from bench.noise import BuildNoise, isolated
from bench.storage.artifacts import artifact
from bench.storage.files import write_whole
from bench_defenses.adversarial.objectives import objective_name
from bench_defenses.adversarial.tagged_images import TaggedImages
from bench_defenses.adversarial.trainer import (
    STATE,
    Epoch,
    StudentTraining,
    TrainedStudent,
    epochs_done,
    train_student,
)

VERSION = 1
"""Raise it when the trainer's numbers may change."""

_WEIGHTS, _LOG = "student.safetensors", "training.json"


def trained_student(
    classifier: DefendedClassifier,
    training: StudentTraining,
    noise: BuildNoise,
    needs: Collection[Need],
) -> DefendedClassifier:
    """The student of `classifier`, frozen, in evaluation mode: out of the cache, or trained now.

    Args:
        classifier: the teacher, in evaluation mode; it is not changed.
        training: on what, and how.
        noise: of the build.
        needs: the data that the defense declared.
    """

    def make(work: Path) -> None:
        done = _train(classifier, training, noise, needs, work)
        write_whole(work / _WEIGHTS, packed(done.student))
        log = {"kept": done.kept.done, "epochs": [asdict(epoch) for epoch in done.history]}
        write_whole(work / _LOG, json.dumps(log, indent=1).encode())
        (work / STATE).unlink(missing_ok=True)

    folder = artifact("students", _identity(classifier, training, noise), make)
    student = loaded(classifier, folder / _WEIGHTS)
    student.notes = (_note_on(training),)
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


def _note_on(training: StudentTraining) -> str:
    images, epochs = training.images, training.schedule.epochs
    return (
        f"trained by {objective_name(training.objective)} inside {training.threat}; "
        f"{images.tag} images: {len(images.images)}, epochs: {epochs}"
    )


def _train(
    classifier: DefendedClassifier,
    training: StudentTraining,
    noise: BuildNoise,
    needs: Collection[Need],
    work: Path,
) -> TrainedStudent:
    student = copy.deepcopy(classifier)
    if training.from_scratch:
        reset(student, noise.seed("fresh weights"))
    what = f"training a student by {objective_name(training.objective)}, epochs"
    with Steps(what, training.schedule.epochs, epochs_done(work)) as steps:
        return train_student(
            student,
            classifier,
            training,
            noise,
            needs=needs,
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
            reset_parameters = getattr(module, "reset_parameters", None)
            if not callable(reset_parameters):
                raise BadInput(
                    f"the layer {name or 'at the top'} has no fresh weights to start from: leave "
                    "from_scratch out"
                )
            reset_parameters()


def _identity(
    classifier: DefendedClassifier, training: StudentTraining, noise: BuildNoise
) -> dict[str, object]:
    return {
        "version": VERSION,
        "classifier": fingerprint(classifier),
        "images": _described(training.images),
        "held_out": None if training.held_out is None else _described(training.held_out),
        "objective": {
            "name": objective_name(training.objective),
            **training.objective.model_dump(mode="json"),
        },
        "schedule": asdict(training.schedule),
        "threat": asdict(training.threat),
        "from_scratch": training.from_scratch,
        "seed": noise.seed("student"),
    }


def _described(images: TaggedImages) -> dict[str, object]:
    labels = None if images.labels is None else _sha256(images.labels)
    return {
        "tag": str(images.tag),
        "shape": list(images.images.shape),
        "pixels": _sha256(images.images),
        "labels": labels,
    }


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()
