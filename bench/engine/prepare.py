"""A defense built and looked at, before anything is attacked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.checks.fresh import FreshCopies, fresh_copies
from bench.defense import DefendedClassifier
from bench.engine.build import build, data_access
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, exact_float32
from bench.engine.fingerprint import weights_sha256
from bench.engine.inspection import Inspection, inspect_defended
from bench.engine.searching import Quick, quick_form


@dataclass(frozen=True)
class Prepared:
    """What is known of an evaluation before its attack.

    Attributes:
        defended: the built defense.
        weights: hash of its weights.
        copies: copies of it that have seen no image.
        inspection: what the checks before the attack found.
        form: what its search may read; None for the defense as it is.
    """

    defended: DefendedClassifier
    weights: str
    copies: FreshCopies
    inspection: Inspection
    form: Quick | None = None


def prepare(evaluation: Evaluation, execution: Execution) -> Prepared:
    """Build the defense and look at it on a few images. Raises `BadInput` where that shows that the
    evaluation is not possible.
    """
    with exact_float32(execution.device):
        access = data_access(evaluation, execution.device)
        defended = build(evaluation, execution.device, access)
        weights = weights_sha256(defended)
        copies = fresh_copies(defended, lambda: build(evaluation, execution.device))
        inspection = inspect_defended(evaluation, defended, access, execution.device)
        form = quick_form(evaluation, defended, execution)
    return Prepared(defended, weights, copies, inspection, form)


def by_base(evaluations: Sequence[Evaluation]) -> Mapping[str, list[Evaluation]]:
    """Of each base, by its id, the evaluations that are compared with it."""
    compared = defaultdict(list)
    for evaluation in evaluations:
        base = evaluation.base()
        if base is not None:
            compared[base.id].append(evaluation)
    return compared
