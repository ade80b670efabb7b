"""A defense built and looked at, before anything is attacked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.checks.fresh import FreshCopies, fresh_copies
from bench.defense import DataAccess, DefendedClassifier
from bench.engine.build import build, data_access
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, exact_float32
from bench.engine.fingerprint import weights_sha256
from bench.engine.inspection import Inspection, inspect_defended
from bench.engine.searching import Quick, quick_form
from bench.engine.trained import published_file, read_trained


@dataclass(frozen=True)
class Prepared:
    """What is known of an evaluation before its attack.

    Attributes:
        defended: the built defense.
        weights: hash of its weights.
        file: where they were read from; None where they were not, and the defense was built.
        copies: copies of it that have seen no image.
        inspection: what the checks before the attack found.
        form: what its search may read; None for the defense as it is.
    """

    defended: DefendedClassifier
    weights: str
    file: Path | None
    copies: FreshCopies
    inspection: Inspection
    form: Quick | None = None


def prepare(evaluation: Evaluation, execution: Execution) -> Prepared:
    """Build the defense and look at it on a few images. Raises `BadInput` where that shows that the
    evaluation is not possible.
    """
    with exact_float32(execution.device):
        access = data_access(evaluation, execution.device)
        defended, file = _obtain(evaluation, execution, access)
        weights = weights_sha256(defended)
        copies = fresh_copies(defended, lambda: _obtain(evaluation, execution)[0])
        inspection = inspect_defended(evaluation, defended, access, execution.device)
        form = quick_form(evaluation, defended, execution)
    return Prepared(defended, weights, file, copies, inspection, form)


def _obtain(
    evaluation: Evaluation, execution: Execution, access: DataAccess | None = None
) -> tuple[DefendedClassifier, Path | None]:
    """The defense, and the file of its weights where it was not built."""
    if execution.weights is not None:
        found = published_file(evaluation, execution.weights)
        read = found and read_trained(evaluation, *found, execution.device)
        if found and read:
            return read, found[0]
    return build(evaluation, execution.device, access), None


def by_base(evaluations: Sequence[Evaluation]) -> Mapping[str, list[Evaluation]]:
    """Of each base, by its id, the evaluations that are compared with it."""
    compared = defaultdict(list)
    for evaluation in evaluations:
        base = evaluation.base()
        if base is not None:
            compared[base.id].append(evaluation)
    return compared
