"""Check a record: against itself, and against the defense built anew."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load
from torch import Tensor

from bench.defense import DefendedClassifier
from bench.engine.build import build
from bench.engine.compute import judge
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, exact_float32
from bench.engine.fingerprint import weights_sha256
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import compute_outcomes
from bench.errors import BadInput
from bench.plugins.create import create_attack
from bench.results.metrics import measure
from bench.results.outcomes import Outcomes
from bench.results.record import Record
from bench.results.store import read_record
from bench.victim import Victim, frozen


@dataclass(frozen=True)
class CheckResult:
    """One check of a record, whether it held, and what was seen."""

    name: str
    held: bool
    message: str


def verify(path: Path, execution: Execution) -> list[CheckResult]:
    """Re-score a record's points under the rebuilt defense, or re-run the attack where the points
    are missing.

    Raises `BadInput` where the record cannot be read or its objects cannot be rebuilt.
    """
    record = read_record(path)
    checks = list(_check_itself(record))
    evaluation = rebuild(record)
    checks.append(_check_setup(record, evaluation))
    with exact_float32(execution.device):
        defended = build(evaluation, execution.device)
    checks.extend(_check_weights(record, defended))
    points = _points(record, path.parent)
    if points is None:
        rerun = compute_outcomes(evaluation, execution)
        return [
            *checks,
            *_compare(record.outcomes, rerun, "re-running the attack (its points are missing)"),
        ]
    checks.append(_check_budget(evaluation, points))
    return [
        *checks,
        *_compare(
            record.outcomes,
            _rescore(evaluation, defended, points, execution),
            "re-scoring the stored points",
        ),
    ]


def rebuild(record: Record) -> Evaluation:
    """The evaluation that a record came from. Raises `BadInput` where data, weights or plugins have
    changed.
    """
    if record.sources["classifier"].startswith("python:"):
        raise BadInput(
            "this record was made from a Python object, which no file holds: evaluate it again "
            "from Python"
        )
    title, identity = record.title, record.identity
    request = Request(
        defenses=(title["defense"],),
        attacks=(title["attack"],),
        datasets=(record.sources["dataset"],),
        classifiers=(record.sources["classifier"],),
        norms=(identity["threat"]["norm"],),
        epsilons=(identity["threat"]["eps"],),
        n=identity["dataset"]["n"],
        randomness=identity["randomness"],
        gradient=identity["gradient"],
        seeds=(identity["seeds"]["attack"],),
        build_seed=identity["seeds"]["build"],
    )
    evaluation = plan(request)[-1]
    if evaluation.id != record.id:
        changed = [key for key in identity if evaluation.identity.get(key) != identity[key]]
        raise BadInput(
            f"the record's {' and '.join(changed)} changed since it was made: rebuild from the "
            "same data and code"
        )
    return evaluation


def _check_itself(record: Record) -> Iterator[CheckResult]:
    by_gradient = record.cost.attack_backwards > 0 and not _is_control(record)
    same = measure(record.outcomes, by_gradient=by_gradient) == record.metrics
    yield CheckResult(
        "metrics",
        same,
        "metrics follow from the outcomes" if same else "metrics do not follow from the outcomes",
    )


def _check_setup(record: Record, evaluation: Evaluation) -> CheckResult:
    images, outcomes, base = evaluation.setup.images, record.outcomes, evaluation.base()
    same = {
        "identity": record.identity == evaluation.identity,
        "title": record.title == evaluation.title,
        "base": record.base == (base.id if base else ""),
        "number of classes": outcomes.num_classes == evaluation.setup.classifier.num_classes,
        "image ids": np.array_equal(outcomes.image_ids(), images.ids),
        "labels": np.array_equal(outcomes.true_labels(), images.labels.numpy()),
        "scale": record.scale["n"] == len(images)
        and record.scale["available"] == evaluation.setup.available,
    }
    wrong = [name for name, held in same.items() if not held]
    return CheckResult(
        "setup",
        not wrong,
        f"differs in {', '.join(wrong)}" if wrong else "same images, labels and settings",
    )


def _check_weights(record: Record, defended: DefendedClassifier) -> Iterator[CheckResult]:
    """A defense that trains when it is built comes out otherwise on another device or number of
    threads.
    """
    stored = record.environment.get("weights")
    if stored is not None and stored != weights_sha256(defended):
        made = f"{record.environment.get('device')}, {record.environment.get('threads')} threads"
        yield CheckResult(
            "weights",
            False,
            f"the defense built here has other weights than the one attacked ({made}): verify it "
            "there",
        )


def _is_control(record: Record) -> bool:
    return bool(create_attack(record.title["attack"]).attack.plugin.card.control)


def _points(record: Record, folder: Path) -> Tensor | None:
    if record.points is None:
        return None
    file = folder / Path(record.points.file).name
    if not file.is_file():
        return None
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != record.points.sha256:
        raise BadInput(
            f"{file} is not the sidecar of this record (its SHA-256 differs): remove it to re-run "
            "the attack"
        )
    return torch.from_numpy(load(data)["points"])


def _check_budget(evaluation: Evaluation, points: Tensor) -> CheckResult:
    inside = evaluation.setup.threat.contains(points, evaluation.setup.images.pixels())
    outside = int((~inside).sum())
    return CheckResult(
        "budget",
        outside == 0,
        f"{outside} of {len(points)} points lie outside {evaluation.setup.threat} or [0,1]",
    )


def _rescore(
    evaluation: Evaluation, defended: DefendedClassifier, points: Tensor, execution: Execution
) -> Outcomes:
    images = evaluation.setup.images
    with exact_float32(execution.device), frozen(defended):
        clean, adversarial = (
            judge(defended, judged, images.ids, evaluation, execution).numpy()
            for judged in (images.pixels(), points)
        )
        victim = Victim(
            defended,
            images.ids,
            randomness=evaluation.randomness,
            root=evaluation.seed,
            batch_size=execution.batch_size,
            device=execution.device,
        )
        replayed = victim.verify(points.to(execution.device)).cpu().numpy()
    if not evaluation.stochastic:
        replayed = replayed[:, :0]
    labels = images.labels.numpy()
    return Outcomes.of(defended.num_classes, images.ids, labels, clean, adversarial, replayed)


def _compare(stored: Outcomes, again: Outcomes, how: str) -> Iterator[CheckResult]:
    for which in ("clean", "adversarial", "replayed"):
        old, new = stored.predictions(which), again.predictions(which)
        if old.shape != new.shape:
            yield CheckResult(
                which,
                False,
                f"{how}: {old.shape[1]} draws an image were stored, {new.shape[1]} came out",
            )
        elif old.size:
            differ = int((old != new).any(1).sum())
            yield CheckResult(
                which, differ == 0, f"{how}: predictions of {differ} of {len(old)} images differ"
            )
