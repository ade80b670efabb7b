"""The audit of one evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.audit import (
    attack_checks,
    binarization,
    minimal_checks,
    path_checks,
    place_checks,
    randomness_checks,
    record_checks,
    search_checks,
)
from bench.audit.limits import FULL, LEAST_ANSWERS, STANDARD, Scale
from bench.audit.row import AuditedRow, Elsewhere
from bench.audit.verdicts import checked, not_applicable
from bench.defense import DefendedClassifier
from bench.engine.build import build
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, exact_float32
from bench.engine.recording import now
from bench.errors import one_line
from bench.results.audit import AuditCheck, AuditReport, Profile, read_profile, verdict_of
from bench.results.record import Record
from bench.victim import frozen

Check = Callable[[AuditedRow], Iterator[AuditCheck]]


@dataclass(frozen=True)
class _Step:
    """One check, the ids that it yields, and whether `full` alone has it."""

    run: Check
    ids: tuple[str, ...]
    thorough: bool = False


STEPS = (
    # Cheap ones first; what breaks images counts for all that follow in the worst case alone.
    _Step(attack_checks.one_step, ("S1",)),
    _Step(search_checks.transfer, ("S8",)),
    _Step(place_checks.whole_pixels, ("S19",)),
    _Step(search_checks.on_the_margin, ("margin",)),
    _Step(minimal_checks.nearest_points, ("S14",)),
    _Step(attack_checks.other_losses, ("S13",)),
    _Step(attack_checks.other_gradients, ("S12",)),
    _Step(attack_checks.longer, ("S2",)),
    _Step(attack_checks.restarts, ("S3",)),
    _Step(attack_checks.larger_eps, ("S4",)),
    _Step(attack_checks.unbounded, ("S5",)),
    _Step(path_checks.paths, ("S11a", "S11c")),
    _Step(path_checks.unstable, ("S11b",)),
    _Step(path_checks.other_function, ("S11d",)),
    _Step(randomness_checks.fixed_noise, ("S9a", "S9b")),
    _Step(randomness_checks.chance, ("S17",)),
    _Step(place_checks.new_process, ("S20",)),
    _Step(search_checks.noise, ("S7",)),
    _Step(search_checks.squares, ("S6",)),
    _Step(search_checks.along_values, ("smoothed",)),
    _Step(binarization.binarization, ("S15",)),
    _Step(attack_checks.more_draws, ("S10",), thorough=True),
    _Step(attack_checks.every_target, ("S18",), thorough=True),
    _Step(search_checks.together, ("together",)),
)

_LEAST_IMAGES = 16
_CHEAP = 3
"""Passes of a prediction that are still cheap."""
_TYPICAL = 100
"""Passes a survivor of a twenty-step attack costs, backward ones counted twice, rounded up."""


def audit(
    evaluation: Evaluation,
    record: Record,
    execution: Execution | None = None,
    *,
    profile: Profile = "standard",
    points: Tensor | None = None,
    others: Sequence[Record] = (),
    progress: Callable[[str], None] | None = None,
    elsewhere: Elsewhere | None = None,
    make: Callable[[], DefendedClassifier] | None = None,
) -> AuditReport:
    """Audit one evaluation that has been run.

    Args:
        evaluation: defense, attack and setup; the defense is built anew.
        record: what running it gave.
        execution: how to compute; on the CPU by default.
        profile: `quick` reads the record alone; `standard` and `full` compute.
        points: the adversarial points of the record, (n, C, H, W), where they are at hand.
        others: records of other attacks on the same defense, for S16.
        progress: called with the id of each check before it runs.
        elsewhere: what the defense answers in a new process, for S20; None where it is an object
            of this one.
        make: makes the defense; by default it is built anew.

    Returns:
        The checks, the verdict that follows, and the points that break what the row's attack left.

    Raises:
        BadInput: for an unknown profile, or where the defense cannot be built.
    """
    profile = read_profile(profile)
    began = time.perf_counter()
    checks = [*record_checks.own_findings(record), *record_checks.collapse(record)]
    checks += record_checks.order(record, others)
    row = None
    if profile != "quick" and not evaluation.attack.plugin.card.control:
        execution = execution or Execution()
        with exact_float32(execution.device):
            defended = make() if make else build(evaluation, execution.device)
            scale = scale_for(record, STANDARD if profile == "standard" else FULL)
            row = AuditedRow(evaluation, defended, record, execution, scale, points, elsewhere)
            checks += _computed(row, defended, progress)
    return AuditReport(
        record=record.id,
        profile=profile,
        verdict=verdict_of(checks),
        images=row.ids_at(range(len(row))) if row else "",
        checks=checks,
        extra=row.extra() if row else [],
        seconds=time.perf_counter() - began,
        finished=now(),
    )


def scale_for(record: Record, scale: Scale) -> Scale:
    """Fewer images where the row's attack, or one prediction, is dear: the checks repeat both."""
    cost = record.cost
    attack = max(cost.max_attack_forwards + 2 * cost.max_attack_backwards, _TYPICAL)
    prediction = record.inference.passes if record.inference else 1.0
    passes = max(prediction / _CHEAP, 1.0)
    dear = attack / _TYPICAL * passes
    if dear <= 1:
        return scale
    images = max(_LEAST_IMAGES, round(scale.images / dear))
    return replace(
        scale,
        images=images,
        repeated=min(scale.repeated, images),
        searched=min(scale.searched, images),
        queries=max(round(scale.queries / passes), 100),
        points=max(round(scale.points / passes), 50),
        smoothing=max(round(scale.smoothing / passes), 10),
        margin=max(round(scale.margin / passes), 20),
        minimal=max(round(scale.minimal / passes), 15),
        answers=_answers(scale, passes),
        inner=max(round(scale.inner / passes), 100),
        binarised=max(round(scale.binarised / dear), 6),
    )


def _answers(scale: Scale, passes: float) -> int:
    """None but in a thorough audit where one prediction is so dear that few are left."""
    fewer = round(scale.answers / passes)
    return fewer if fewer >= LEAST_ANSWERS else LEAST_ANSWERS * scale.thorough


def _computed(
    row: AuditedRow, defended: DefendedClassifier, progress: Callable[[str], None] | None
) -> Iterator[AuditCheck]:
    for step in STEPS:
        if step.thorough and not row.scale.thorough:
            continue
        if not len(row):
            yield from (not_applicable(i, "no image is classified correctly") for i in step.ids)
            continue
        if progress:
            progress(step.ids[0])
        try:
            with frozen(defended):
                found = list(step.run(row))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            told = f"the check could not be run ({one_line(error)})"
            found = [checked(i, "warn", told[:2000]) for i in step.ids]
        forwards, backwards = row.take_cost()
        for place, one in enumerate(found):
            spent = {"forwards": forwards, "backwards": backwards} if place == 0 else {}
            yield one.model_copy(update=spent)
