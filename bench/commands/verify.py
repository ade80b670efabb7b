"""Check records: against themselves, and against the defense built anew."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from bench.checks.fresh import fresh_copies
from bench.checks.probed import BEATEN, WEAK
from bench.checks.shard import BASE, CAUSES, COPIED, GAPS, MOVED, NOT_JUDGED
from bench.checks.verdicts import (
    BASE_BREAKS,
    BATCH,
    HIDDEN,
    LOOP,
    NO_COPY,
    REMEMBERS,
    RowFacts,
)
from bench.checks.verdicts import findings as check_findings
from bench.commands.differences import (
    CheckResult,
    compared,
    differing,
    differing_distances,
    differing_findings,
    differing_views,
)
from bench.commands.rescoring import Answers, Sidecar, answer, read_sidecar
from bench.commands.trust import check_trusted, of_python
from bench.defense import DataAccess, DefendedClassifier
from bench.engine.build import build, data_access
from bench.engine.checking import base_points, shard_checks
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Compile, Execution, exact_float32
from bench.engine.fingerprint import weights_sha256
from bench.engine.inspection import Inspection, inspect_defended
from bench.engine.plan import plan
from bench.engine.recording import (
    BFLOAT16,
    COMPILE,
    NO_GRADIENT,
    by_gradient,
    cost_of,
    declared,
    distances_of,
    encoded_targets,
    extra_of,
    findings_of,
    judge_forwards,
    outcomes_of,
    relevant,
    stages_of,
)
from bench.engine.request import Request
from bench.engine.run import compute_arrays
from bench.engine.shards import Arrays
from bench.engine.trained import is_trained, read_trained
from bench.errors import BadInput, one_line
from bench.results.comparisons import beats
from bench.results.extra import BASE_POINTS, CHECKS
from bench.results.findings import ids_of
from bench.results.metrics import measure
from bench.results.outcomes import NO_TARGET, Outcomes, decode
from bench.results.record import Cost, Record
from bench.results.store import Store, files_below, is_failure, read_record
from bench.results.targets import targets_finding
from bench.results.weights import file_of_weights, weights_of
from bench.storage.artifacts import NotStored, only_stored
from bench.victim import SLOPE_COUNTS

RERUN = "re-running the attack (its points are missing)"
RESCORED = "re-scoring the stored points"

COST_TOLERANCE = 0.05
"""By what share the passes of a search in a quick form may differ, beside one an image."""

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

SECOND_ANSWERS = frozenset({BATCH, REMEMBERS, HIDDEN})
"""Findings of the attacked points asked a second time."""

FOLLOW = frozenset({BASE_BREAKS, LOOP, NO_COPY})
"""Findings of the run's checks that follow from the record and from the defense."""


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


def drawn(paths: list[Path], sample: int | None, seed: int) -> list[Path]:
    """So many of these files, drawn without replacement, in their order; None for all of them.

    The draw depends on the files' names and the seed alone, so that somebody else draws the same.
    Raises `BadInput` for a sample of none or of more than there are, and for a negative seed.
    """
    if seed < 0:
        raise BadInput(f"seed is {seed}: give 0 or more")
    if sample is None:
        return paths
    if not 1 <= sample <= len(paths):
        raise BadInput(f"sample is {sample}: give 1 to {len(paths)}, the number of records")

    def lot(path: Path) -> bytes:
        return hashlib.sha256(f"{seed} {path.name}".encode()).digest()

    chosen = set(sorted(paths, key=lot)[:sample])
    return [path for path in paths if path in chosen]


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
        path: the record; its points lie beside it, and perhaps the weights of a trained defense,
            which is not trained then.
        execution: how to compute.
        trust: run `FILE.py@NAME` of the record wherever that file is.

    Raises `BadInput` where the record cannot be read, names code that is not the user's own, or
    its objects cannot be rebuilt.
    """
    record = read_record(path)
    if not trust:
        check_trusted(record)
    evaluation = rebuild(record)
    store = Store(path.parent)
    sidecar = read_sidecar(record, evaluation, store)
    with exact_float32(execution.device):
        defended, access, kept = built(record, evaluation, path, execution.device)
        weights = list(_check_weights(record, defended))
        copies = fresh_copies(defended, lambda: build(evaluation, execution.device))
        if sidecar:
            # Before anything else is asked of the defense.
            answers = answer(record, evaluation, defended, copies, sidecar, execution)
        inspection = inspect_defended(evaluation, defended, access, execution.device)
    checks = [_check_setup(record, evaluation, inspection), _check_metrics(record, evaluation)]
    checks.extend(weights)
    if kept:
        untrained = f"read from {file_of_weights(record)}, not trained anew: how is not checked"
        checks.append(CheckResult("weights", True, untrained))
    if sidecar:
        checks.extend(_check_points(record, evaluation, sidecar, answers))
        checks.append(_check_known_findings(record, evaluation, inspection, answers))
        return [*checks, *_compare(record.outcomes, answers.outcomes, RESCORED)]
    own = None
    if was_checked(record):
        own = shard_checks(evaluation, defended, copies, execution, store)
    has_base = base_points(evaluation, store) is not None
    probed = None
    if own:
        # A row that failed by the base's points was not probed; whether it did stays as it is told.
        told = [] if has_base else [one for one in record.findings if one.name == BASE_BREAKS]
        probed = replace(inspection, findings=[*inspection.findings, *told])
    # The search reads what it read then.
    as_then = replace(execution, compile=_compiled(record))
    arrays = compute_arrays(evaluation, defended, as_then, own, probed)
    checks.extend(_check_rerun(record, evaluation, arrays, inspection, has_base=has_base))
    return [*checks, *_compare(record.outcomes, outcomes_of(evaluation, arrays), RERUN)]


def _compiled(record: Record) -> Compile:
    told = record.environment.get(COMPILE, {})
    if isinstance(told, Mapping) and BFLOAT16 in told:
        return "on"
    return "auto" if told else "off"


def built(
    record: Record, evaluation: Evaluation, path: Path, device: torch.device
) -> tuple[DefendedClassifier, DataAccess, bool]:
    """The defense, its data, and whether its weights are those that lie beside the record: only
    where the cache holds none, or those of another training, since a defense that is not trained is
    what it is built from.
    """
    access, made = data_access(evaluation, device), None
    with contextlib.suppress(NotStored), only_stored():
        made = build(evaluation, device, access)
    if made is not None and (
        weights_sha256(made) == weights_of(record) or not is_trained(evaluation)
    ):
        return made, access, False
    access = data_access(evaluation, device)
    file = path.parent / file_of_weights(record)
    kept = read_trained(evaluation, file, weights_of(record), device)
    return kept or build(evaluation, device, access), access, kept is not None


def attacked(
    record: Record, evaluation: Evaluation, path: Path, device: torch.device
) -> DefendedClassifier:
    """The defense that a record's attack was run on, from the weights beside it where it would have
    to be trained. Raises `BadInput` where it comes out otherwise here.
    """
    defended, _, _ = built(record, evaluation, path, device)
    stored = record.environment.get("weights")
    if stored and stored != weights_sha256(defended):
        raise BadInput(
            "the defense built here has other weights than the one attacked: put them beside the "
            "record, or run the row here"
        )
    return defended


def rebuild(record: Record) -> Evaluation:
    """The evaluation that a record came from. Raises `BadInput` where data, weights or plugins have
    changed.
    """
    if of_python(record):
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
        if name != "inference" or record.inference is not None or was_checked(record):
            expected[name] = value
    same = {
        "identity": record.identity == evaluation.identity,
        "outcomes.num_classes": outcomes.num_classes == evaluation.setup.classifier.num_classes,
        "outcomes.ids": np.array_equal(outcomes.image_ids(), images.ids),
        "outcomes.labels": np.array_equal(outcomes.true_labels(), images.labels.numpy()),
        "given": _is_given(record, evaluation),
        "cost.judge_forwards": record.cost.judge_forwards == judge_forwards(evaluation),
        "points.file": record.points is None
        or record.points.file == f"{record.stem}.{record.points.sha256[:8]}.points.safetensors",
    }
    wrong = [name for name, held in same.items() if not held]
    wrong += differing({name: getattr(record, name) for name in expected}, expected)
    return compared("setup", wrong, "same images, labels and settings")


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
    return compared("metrics", wrong, "metrics follow from the outcomes")


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


def _check_points(
    record: Record, evaluation: Evaluation, sidecar: Sidecar, answers: Answers
) -> Iterator[CheckResult]:
    """What the points show beside the answers."""
    yield _check_budget(record, evaluation, sidecar)
    wrong = differing_views(record, answers.scores, evaluation.setup.classifier.num_classes)
    yield compared("views", wrong, "the views say the same")
    yield _check_stages(record, evaluation, answers)
    yield _check_targets(record, evaluation, answers)
    yield _check_distances(record, evaluation, answers)
    yield _check_extra(record, answers.extra, stored=len(sidecar.extra), how=RESCORED)
    yield compared(
        "cost",
        _impossible_costs(record, has_copy=answers.causes is not None),
        "the passes can be those of one attack",
    )


def _check_budget(record: Record, evaluation: Evaluation, sidecar: Sidecar) -> CheckResult:
    images, threat = evaluation.setup.images.pixels(), evaluation.setup.threat
    rows = [extra.places(record.outcomes) for extra in record.extra if extra.name == CHECKS]
    inside = threat.contains(sidecar.points, images)
    if rows and len(sidecar.extra) == len(rows[0]):
        inside = torch.cat([inside, threat.contains(sidecar.extra, images[rows[0]])])
    outside = int((~inside).sum())
    return CheckResult(
        "budget",
        outside == 0,
        f"{outside} of {len(inside)} points lie outside {threat} or [0,1]",
    )


def _check_stages(record: Record, evaluation: Evaluation, answers: Answers) -> CheckResult:
    """Where the attacked function is fixed, what broke an image is its verdict taken apart."""
    stages, names = record.stages, list(evaluation.attack.plugin.stages)
    wrong = [] if (stages.names if stages else []) == names else ["stages.names"]
    if stages and not wrong and answers.before is not None:
        labels = record.outcomes.true_labels()
        clean = answers.before == labels
        under = "replayed" if record.outcomes.replayed else "adversarial"
        attacked = record.outcomes.predictions(under)[:, 0] == labels
        broken = np.array([code not in ".-" for code in stages.broken_by])
        before = np.array([code == "." for code in stages.broken_by])
        if not np.array_equal(broken, clean & ~attacked) or not np.array_equal(before, ~clean):
            wrong = ["stages.broken_by"]
    return compared("stages", wrong, "stages follow from the outcomes")


def _check_targets(record: Record, evaluation: Evaluation, answers: Answers) -> CheckResult:
    """An image that was wrong before was not attacked, and has no target."""
    wrong = [] if (record.targets is not None) == evaluation.attack.plugin.targeted else ["targets"]
    if record.targets is not None and answers.before is not None:
        targets = decode(record.targets, record.outcomes.num_classes)
        untouched = answers.before != record.outcomes.true_labels()
        if (targets[untouched] != NO_TARGET).any():
            wrong = ["targets"]
    return compared("targets", wrong, "targets are those of attacked images")


def _check_distances(record: Record, evaluation: Evaluation, answers: Answers) -> CheckResult:
    """Where the attacked function is the defense and fixed, what lies within eps is broken, what
    lies beyond is not, and what is wrong before lies at 0.
    """
    measured = record.distances is not None
    wrong = [] if measured == evaluation.attack.plugin.measures else ["distances"]
    if record.distances and answers.before is not None and evaluation.gradient == "full":
        labels, far = record.outcomes.true_labels(), record.distances.array()
        under = "replayed" if record.outcomes.replayed else "adversarial"
        attacked = record.outcomes.predictions(under)[:, 0] == labels
        before, eps = answers.before != labels, evaluation.setup.threat.eps
        # A success is wrong by more than rounding, so a point just outside may be wrong as well.
        lost = ~attacked & (far > eps * 1.001)
        if ((far <= eps) & attacked).any() or lost.any() or (far[before] != 0).any():
            wrong = ["distances"]
    return compared("distances", wrong, "what lies within eps is broken, and nothing else")


def _check_extra(
    record: Record, again: Mapping[str, Any], *, stored: int | None, how: str
) -> CheckResult:
    """Points found beside the attack's.

    Args:
        record: the record.
        again: by name, predictions on them (m, draws); what is not there cannot be asked.
        stored: how many points of the checks lie in the sidecar; None where it is missing.
        how: how the predictions were made.
    """
    extra, k = {one.name: one for one in record.extra}, record.outcomes.num_classes
    wrong = [name for name in extra if name not in (BASE_POINTS, CHECKS)]
    if stored is not None and stored != len(extra[CHECKS].image_ids() if CHECKS in extra else ()):
        wrong.append(CHECKS)
    for name, answers in again.items():
        same = name in extra and np.array_equal(extra[name].predictions(k), answers)
        # A record from before there were checks has none, of the base neither.
        wrong += [] if same or (name not in extra and not was_checked(record)) else [name]
    names = [f"extra.{name}" for name in dict.fromkeys(wrong)]
    return compared("extra", names, f"{how}: points found beside the attack's say the same")


def _impossible_costs(record: Record, *, has_copy: bool) -> list[str]:
    """Means over n images of whole numbers, of which none is above the most."""
    n, cost, wrong = record.metrics.n, record.cost, []
    for kind in ("forwards", "backwards"):
        for who in ("attack", "check"):
            total = n * getattr(cost, f"{who}_{kind}")
            if not math.isclose(total, round(total), abs_tol=1e-6 * n):
                wrong.append(f"cost.{who}_{kind}")
        if getattr(cost, f"max_attack_{kind}") > n * getattr(cost, f"attack_{kind}") + 1e-6 * n:
            wrong.append(f"cost.max_attack_{kind}")
    # Every attacked point is answered a second time, and the base's points under their draws.
    asked = [len(extra.adversarial) for extra in record.extra if extra.name == BASE_POINTS]
    if was_checked(record) and cost.check_forwards < has_copy + sum(asked) - 1e-6:
        wrong.append("cost.check_forwards")
    return wrong


def was_checked(record: Record) -> bool:
    """Whether the run that made a record checked itself; earlier versions did not."""
    return record.cost.check_forwards > 0 or bool(record.extra)


def _facts(record: Record, answers: Answers, *, loops: bool, known: frozenset[str]) -> RowFacts:
    """What the run's checks can be told of a record without its attack."""
    n, outcomes = record.metrics.n, record.outcomes
    base = np.full((n, 1), NOT_JUDGED, dtype=np.int64)
    for extra in record.extra:
        if extra.name == BASE_POINTS:
            base = np.full((n, len(extra.adversarial)), NOT_JUDGED, dtype=np.int64)
            base[extra.places(outcomes)] = extra.predictions(outcomes.num_classes)
    none = np.zeros(n, dtype=np.int64)
    checks = {
        CAUSES: none if answers.causes is None else answers.causes,
        GAPS: none.astype(np.float32),
        MOVED: np.array([], dtype=np.str_),
        BASE: base,
        COPIED: np.array([answers.causes is not None], dtype=np.int64),
    }
    return RowFacts(outcomes, dict.fromkeys(SLOPE_COUNTS, none), checks, loops, known)


def _differing_probes(record: Record) -> list[str]:
    """Whether the record says which images the points of the checks break, where those are many;
    what it makes of it rests on the searches, too.
    """
    images, outcomes = "", record.outcomes
    for extra in record.extra:
        if extra.name == CHECKS:
            right = extra.correct(outcomes)[extra.places(outcomes)].mean(1)
            broken = np.ones(len(right), dtype=bool) if outcomes.replayed else right <= 0.5
            if beats(broken, np.zeros_like(broken)):
                images = ids_of(extra.image_ids()[broken])
    stored = [one for one in record.findings if one.name in (BEATEN, WEAK)]
    if [one.images for one in stored] == ([images] if images else []):
        return []
    return [f"findings.{one.name}" for one in stored] or [f"findings.{BEATEN}"]


def _check_known_findings(
    record: Record, evaluation: Evaluation, inspection: Inspection, answers: Answers
) -> CheckResult:
    """Findings that follow from defense, points and outcomes; others are the attack's alone, and
    only running it again can tell them.
    """
    asked = record.cost.attack_backwards > 0 or any(
        finding.name == NO_GRADIENT for finding in record.findings
    )
    expected = relevant(inspection.findings, asked_gradients=asked)
    failed = frozenset(one.name for one in expected if one.verdict == "fail")
    if record.stages:
        expected += evaluation.attack.plugin.review(record.stages.left())
    if record.targets is not None:
        targets = decode(record.targets, record.outcomes.num_classes)
        expected.append(targets_finding(targets, record.outcomes))
    of_checks = []
    if was_checked(record):
        loops = inspection.inference.optimises
        of_checks = list(check_findings(_facts(record, answers, loops=loops, known=failed)))
    expected += [one for one in of_checks if one.name in FOLLOW]
    names = BEFORE_THE_ATTACK | FOLLOW | {one.name for one in [*inspection.findings, *expected]}
    # How many images show it, and by how much, depends on the size of the batches.
    told = {one.name for one in inspection.findings}
    shown = [one for one in record.findings if one.name in SECOND_ANSWERS - told]
    stored = [one for one in record.findings if one.name in names and one not in shown]
    wrong = differing_findings(stored, expected)
    again = {one.name for one in of_checks if one.name in SECOND_ANSWERS}
    wrong += [f"findings.{name}" for name in sorted({one.name for one in shown} ^ again)]
    wrong += _differing_probes(record)
    return compared(
        "findings",
        wrong,
        "findings follow from defense, points and outcomes; those of the attack, and its passes, "
        "need it to be run again",
    )


# The attack is run again -------------------------------------------------------------------------


def _near_cost(name: str, stored: Cost, again: Cost) -> bool:
    """Whether a number of passes is that of a search in a quick form: where it asks the defense
    itself may change, and rounding leads one search or another elsewhere.
    """
    field = name.rpartition(".")[2]
    if not field.startswith(("attack_", "max_attack_")):
        return False
    one, other = getattr(stored, field), getattr(again, field)
    return bool(abs(one - other) <= 1 + COST_TOLERANCE * one)


def _check_rerun(
    record: Record,
    evaluation: Evaluation,
    arrays: Arrays,
    inspection: Inspection,
    *,
    has_base: bool,
) -> Iterator[CheckResult]:
    """All that the attack says beside the answers.

    Where the points of the base do not lie beside the record, what follows from them stays as it
    is.
    """
    unknown = set() if has_base else {BASE_BREAKS}
    stored, again = (
        [one for one in findings if one.name not in unknown]
        for findings in (record.findings, findings_of(evaluation, arrays, inspection))
    )
    yield compared("findings", differing_findings(stored, again), "the attack finds the same")
    known = {"seconds": record.cost.seconds}
    known |= {} if has_base else {"check_forwards": record.cost.check_forwards}
    cost = cost_of(evaluation, arrays).model_copy(update=known)
    wrong = differing({"cost": record.cost}, {"cost": cost})
    if COMPILE in record.environment:
        wrong = [name for name in wrong if not _near_cost(name, record.cost, cost)]
    yield compared("cost", wrong, "the attack takes as many passes")
    said = {"stages": record.stages, "targets": record.targets}
    expected = {
        "stages": stages_of(evaluation, arrays),
        "targets": encoded_targets(evaluation, arrays),
    }
    wrong = differing(said, expected) + differing_views(record, arrays, record.outcomes.num_classes)
    wrong += differing_distances(record.distances, distances_of(evaluation, arrays))
    yield compared("stages and views", wrong, "stages and views are the same")
    found = {one.name: one for one in extra_of(evaluation, arrays)}
    answers = {name: one.predictions(record.outcomes.num_classes) for name, one in found.items()}
    yield _check_extra(record, answers, stored=None, how=RERUN)


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
