"""Check records: against themselves, and against the defense built anew."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import Tensor

from bench.commands.trust import check_trusted
from bench.defense import DefendedClassifier
from bench.engine.build import build, data_access
from bench.engine.compute import ShardComputer, judge
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, exact_float32
from bench.engine.fingerprint import weights_sha256
from bench.engine.inspection import Inspection, inspect_defended
from bench.engine.plan import plan
from bench.engine.recording import (
    NO_GRADIENT,
    by_gradient,
    cost_of,
    declared,
    encoded_targets,
    findings_of,
    judge_forwards,
    outcomes_of,
    relevant,
    stages_of,
)
from bench.engine.request import Request
from bench.engine.run import compute_arrays
from bench.engine.shards import Arrays
from bench.errors import BadInput, one_line
from bench.results.findings import Finding
from bench.results.metrics import measure
from bench.results.outcomes import Outcomes, decode
from bench.results.record import Record
from bench.results.store import files_below, is_failure, read_record
from bench.results.targets import targets_finding
from bench.results.views import DETECTOR, view_scores
from bench.victim import Victim, frozen

RERUN = "re-running the attack (its points are missing)"
RESCORED = "re-scoring the stored points"

BEFORE_THE_ATTACK = {
    "hidden-randomness",
    "global-generator",
    "undeclared-randomness",
    "batch-dependence",
    "forward-pass",
    "probabilities",
    "zero-gradient",
    "clamped-input",
    "trained-on-test",
    "transfer",
    "transductive",
    "generator",
    "public-images",
    "built",
}
"""Findings that no attack makes."""

_PLAIN: TypeAdapter[Any] = TypeAdapter(Any)


@dataclass(frozen=True)
class CheckResult:
    """One check of a record, whether it held, and what was seen."""

    name: str
    held: bool
    message: str


@dataclass(frozen=True)
class Verified:
    """What became of one record: its checks, or why it could not be checked."""

    path: Path
    checks: list[CheckResult]
    refused: BadInput | None = None

    @property
    def held(self) -> bool:
        """Whether it was checked and every check held."""
        return self.refused is None and all(check.held for check in self.checks)


def files_of(places: Iterable[Path]) -> list[Path]:
    """These files, and the records below these folders. Raises `BadInput` where a folder has
    none.
    """
    files: list[Path] = []
    for place in places:
        inside = [place]
        if os.path.isdir(place):
            inside = [path for path in files_below(place) if not is_failure(path)]
            if not inside:
                raise BadInput(f"no records in {place}: run something first")
        files += inside
    return files


def verify_all(
    paths: Iterable[Path], execution: Execution, *, trust: bool = False
) -> Iterator[Verified]:
    """Verify records one after the other; one that cannot be checked holds up no other."""
    for path in paths:
        try:
            yield Verified(path, verify(path, execution, trust=trust))
        except BadInput as error:
            yield Verified(path, [], error)


def verify(path: Path, execution: Execution, *, trust: bool = False) -> list[CheckResult]:
    """Recompute what follows from a record: its points are re-scored under the rebuilt defense, or
    the attack is run again where they are missing.

    Args:
        path: the record; its points lie beside it.
        execution: how to compute.
        trust: run `FILE.py@NAME` of the record wherever that file is.

    Raises `BadInput` where the record cannot be read, names code that is not the user's own, or
    its objects cannot be rebuilt.
    """
    record = read_record(path)
    if not trust:
        check_trusted(record)
    evaluation = rebuild(record)
    points = _points(record, path.parent, evaluation)
    with exact_float32(execution.device):
        access = data_access(evaluation, execution.device)
        defended = build(evaluation, execution.device, access)
        inspection = inspect_defended(evaluation, defended, access, execution.device)
    checks = [_check_setup(record, evaluation, inspection), _check_metrics(record, evaluation)]
    checks.extend(_check_weights(record, defended))
    if points is None:
        arrays = compute_arrays(evaluation, defended, execution)
        checks.extend(_check_rerun(record, evaluation, arrays, inspection))
        again, how = outcomes_of(evaluation, arrays), RERUN
    else:
        checks.append(_check_budget(evaluation, points))
        checks.extend(_check_points(record, evaluation, defended, points, execution))
        checks.append(_check_known_findings(record, evaluation, inspection))
        again, how = _rescore(evaluation, defended, points, execution), RESCORED
    return [*checks, *_compare(record.outcomes, again, how)]


def rebuild(record: Record) -> Evaluation:
    """The evaluation that a record came from. Raises `BadInput` where data, weights or plugins have
    changed.
    """
    sources = (record.sources["classifier"], record.sources["dataset"])
    # A class or a module from Python has a hash of its code, and no file before its name.
    unnamed = any(
        "source" in record.identity[kind] and "@" not in record.title[kind].partition(":")[0]
        for kind in ("defense", "attack")
    )
    if unnamed or any(source.startswith("python:") for source in sources):
        raise BadInput(
            "this record was made from a Python object, which no file holds: evaluate it again "
            "from Python"
        )
    title, identity = record.title, record.identity
    try:
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
    except ValidationError as error:
        raise BadInput(f"no request makes this record ({one_line(error)}): run it again") from None
    evaluation = plan(request)[-1]
    if evaluation.id != record.id:
        changed = [key for key in identity if evaluation.identity.get(key) != identity[key]]
        raise BadInput(
            f"the record's {' and '.join(changed)} changed since it was made: rebuild from the "
            "same data and code"
        )
    return evaluation


def _check_setup(record: Record, evaluation: Evaluation, inspection: Inspection) -> CheckResult:
    images, outcomes, expected = evaluation.setup.images, record.outcomes, {}
    for name, value in declared(evaluation, inspection).items():
        # What was not measured when the record was made says nothing.
        if name != "inference" or record.inference is not None:
            expected[name] = value
    same = {
        "identity": record.identity == evaluation.identity,
        "outcomes.num_classes": outcomes.num_classes == evaluation.setup.classifier.num_classes,
        "outcomes.ids": np.array_equal(outcomes.image_ids(), images.ids),
        "outcomes.labels": np.array_equal(outcomes.true_labels(), images.labels.numpy()),
        "given": _is_given(record, evaluation),
        "cost.judge_forwards": record.cost.judge_forwards == judge_forwards(evaluation),
    }
    wrong = [name for name, held in same.items() if not held]
    wrong += differing({name: getattr(record, name) for name in expected}, expected)
    return _result("setup", wrong, "same images, labels and settings")


def _is_given(record: Record, evaluation: Evaluation) -> bool:
    """Whether the parameters that are said to be given can have been: those that the specs show,
    and no others than there are.
    """
    given, setup = record.given, evaluation.setup
    if set(given) != {*setup.given, "defense", "attack"}:
        return False
    for name, plugin in (("defense", evaluation.defense), ("attack", evaluation.attack)):
        known = type(plugin.plugin).Params.model_fields
        if not set(plugin.given) <= set(given[name]) <= {*known, "gradient", "randomness"}:
            return False
    return all(given[name] == setup.given[name] for name in ("dataset", "classifier"))


def _check_metrics(record: Record, evaluation: Evaluation) -> CheckResult:
    again = measure(record.outcomes, by_gradient=by_gradient(evaluation, record.cost))
    wrong = differing({"metrics": record.metrics}, {"metrics": again})
    return _result("metrics", wrong, "metrics follow from the outcomes")


def _result(name: str, wrong: list[str], right: str) -> CheckResult:
    return CheckResult(name, not wrong, f"differs in {', '.join(wrong)}" if wrong else right)


def differing(stored: Any, again: Any, where: str = "") -> list[str]:
    """The dotted names of what differs between two nested values; numbers up to rounding."""
    stored, again = (
        _PLAIN.dump_python(value, mode="json") if isinstance(value, BaseModel) else value
        for value in (stored, again)
    )
    if isinstance(stored, Mapping) and isinstance(again, Mapping):
        names = list(dict.fromkeys([*stored, *again]))
        if set(stored) != set(again):
            only = [str(name) for name in names if (name in stored) != (name in again)]
            return [f"{where}.{name}".lstrip(".") for name in only]
        pairs = [(f"{where}.{name}".lstrip("."), stored[name], again[name]) for name in names]
        return [one for name, old, new in pairs for one in differing(old, new, name)]
    if isinstance(stored, float | int) and isinstance(again, float | int):
        same = isinstance(stored, bool) == isinstance(again, bool)
        return [] if same and math.isclose(stored, again, rel_tol=1e-9, abs_tol=1e-12) else [where]
    return [] if _PLAIN.dump_python(stored) == _PLAIN.dump_python(again) else [where]


def _check_weights(record: Record, defended: DefendedClassifier) -> Iterator[CheckResult]:
    """A defense that trains when it is built comes out otherwise on another device or number of
    threads.
    """
    stored = record.environment.get("weights")
    if stored != weights_sha256(defended):
        made = f"{record.environment.get('device')}, {record.environment.get('threads')} threads"
        yield CheckResult(
            "weights",
            False,
            f"the defense built here has other weights than the one attacked ({made}): verify it "
            "there",
        )


# The points are there ----------------------------------------------------------------------------


def _points(record: Record, folder: Path, evaluation: Evaluation) -> Tensor | None:
    if record.points is None:
        return None
    file = folder / Path(record.points.file).name
    if not file.is_file():
        return None
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {file} ({error.strerror}): check its permissions") from error
    advice = "remove it to re-run the attack"
    if hashlib.sha256(data).hexdigest() != record.points.sha256:
        raise BadInput(f"{file} is not the sidecar of this record (its SHA-256 differs): {advice}")
    try:
        points = load(data)["points"]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadInput(f"{file} holds no points ({one_line(error)}): {advice}") from error
    shape = tuple(evaluation.setup.images.pixels().shape)
    if points.dtype != np.float32 or points.shape != shape:
        raise BadInput(f"{file} holds {points.dtype} {points.shape}, not float32 {shape}: {advice}")
    return torch.from_numpy(points)


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


def _check_points(
    record: Record,
    evaluation: Evaluation,
    defended: DefendedClassifier,
    points: Tensor,
    execution: Execution,
) -> Iterator[CheckResult]:
    """What the points show beside the answers: views and stages."""
    images = evaluation.setup.images
    computer = ShardComputer(evaluation, defended, execution)
    with exact_float32(execution.device), frozen(defended):
        scores = computer.scores(images.pixels().to(execution.device), points, images.ids)
    wrong = _differing_views(record, scores, evaluation.setup.classifier.num_classes)
    yield _result("views", wrong, "the views say the same")
    names = list(evaluation.attack.plugin.stages)
    stages = record.stages
    if (stages.names if stages else []) != names:
        yield _result("stages", ["stages.names"], "")
    elif stages and not evaluation.stochastic:
        broken = np.array([code not in ".-" for code in stages.broken_by])
        clean, attacked = (record.outcomes.correct(w)[:, 0] for w in ("clean", "adversarial"))
        same = np.array_equal(broken, clean & ~attacked) and np.array_equal(
            ~clean, [code == "." for code in stages.broken_by]
        )
        wrong = [] if same else ["stages.broken_by"]
        yield _result("stages", wrong, "stages follow from the outcomes")
    if (record.targets is not None) != evaluation.attack.plugin.targeted:
        yield _result("targets", ["targets"], "")


def _differing_views(record: Record, arrays: Arrays, num_classes: int) -> list[str]:
    again, stored = view_scores(arrays, num_classes), record.views
    if stored is None or again is None:
        return [] if stored is again else ["views"]
    wrong = differing({"views.answers": stored.answers}, {"views.answers": again.answers})
    wrong += [] if stored.attacked == again.attacked else ["views.attacked"]
    # The scores are stored with four digits, and other batches round otherwise.
    for which in {*stored.detector, *again.detector}:
        old, new = (np.array(one.detector.get(which, [])) for one in (stored, again))
        if old.shape != new.shape or not np.allclose(old, new, rtol=1e-2, atol=1e-2):
            wrong.append(f"views.{DETECTOR}.{which}")
    return wrong


def _check_known_findings(
    record: Record, evaluation: Evaluation, inspection: Inspection
) -> CheckResult:
    """Findings that follow from defense and outcomes; others are the attack's alone, and only
    running it again can tell them.
    """
    asked = record.cost.attack_backwards > 0 or any(
        finding.name == NO_GRADIENT for finding in record.findings
    )
    expected = relevant(inspection.findings, asked_gradients=asked)
    if record.stages:
        expected += evaluation.attack.plugin.review(record.stages.left())
    if record.targets is not None:
        targets = decode(record.targets, record.outcomes.num_classes)
        expected.append(targets_finding(targets, record.outcomes))
    names = BEFORE_THE_ATTACK | {finding.name for finding in [*inspection.findings, *expected]}
    stored = [finding for finding in record.findings if finding.name in names]
    return _result(
        "findings",
        _differing_findings(stored, expected),
        "findings follow from defense and outcomes; those of the attack, and its passes, need it "
        "to be run again",
    )


def _differing_findings(stored: list[Finding], again: list[Finding]) -> list[str]:
    old, new = (
        {(one.name, one.verdict, one.message) for one in findings} for findings in (stored, again)
    )
    return [f"findings.{name}" for name in sorted({name for name, _, _ in old ^ new})]


# The attack is run again -------------------------------------------------------------------------


def _check_rerun(
    record: Record, evaluation: Evaluation, arrays: Arrays, inspection: Inspection
) -> Iterator[CheckResult]:
    """All that the attack says beside the answers."""
    found = findings_of(evaluation, arrays, inspection)
    wrong = _differing_findings(record.findings, found)
    yield _result("findings", wrong, "the attack finds the same")
    again = cost_of(evaluation, arrays)
    wrong = differing(
        {"cost": record.cost}, {"cost": again.model_copy(update={"seconds": record.cost.seconds})}
    )
    yield _result("cost", wrong, "the attack takes as many passes")
    stored = {"stages": record.stages, "targets": record.targets}
    expected = {
        "stages": stages_of(evaluation, arrays),
        "targets": encoded_targets(evaluation, arrays),
    }
    wrong = differing(stored, expected)
    wrong += _differing_views(record, arrays, record.outcomes.num_classes)
    yield _result("stages and views", wrong, "stages and views are the same")


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
