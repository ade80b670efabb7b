"""The attacked points of a record, answered again by a defense that has seen no image before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from bench.checks.again import Asking, answer_again
from bench.checks.fresh import FreshCopies
from bench.defense import DefendedClassifier
from bench.engine.checking import base_points
from bench.engine.compute import ShardComputer, base_draws, judge, judged_logits, places_of
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, exact_float32
from bench.engine.recording import EXTRA
from bench.engine.shards import Arrays
from bench.errors import BadInput, one_line
from bench.results.extra import BASE_POINTS, CHECKS
from bench.results.outcomes import Outcomes
from bench.results.points import bytes_of_points, file_of_points
from bench.results.record import Record
from bench.results.store import Store
from bench.victim import Victim, frozen, predict

_REMOVE = "remove it to re-run the attack"


@dataclass(frozen=True)
class Sidecar:
    """The points that lie beside a record.

    Attributes:
        points: where the attack ended, (n, C, H, W).
        extra: what the checks of the run found, in the order of their ids, (m, C, H, W).
        base: where the attack on the base ended, (n, C, H, W); None where the base's record or its
            points are not there, or no row is compared with it.
    """

    points: Tensor
    extra: Tensor
    base: Tensor | None


def read_sidecar(record: Record, evaluation: Evaluation, store: Store) -> Sidecar | None:
    """The points of a record; None where they are missing. Raises `BadInput` where the file is
    another one.
    """
    if record.points is None:
        return None
    file = file_of_points(record, store.folder)
    data = bytes_of_points(record, store.folder, _REMOVE)
    if data is None:
        return None
    try:
        tensors = load(data)
        points = tensors["points"]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadInput(f"{file} holds no points ({one_line(error)}): {_REMOVE}") from error
    images = evaluation.setup.images.pixels()
    extra = tensors.get(EXTRA, images[:0])
    for tensor, n in ((points, len(images)), (extra, len(extra))):
        shape = (n, *images.shape[1:])
        if tensor.dtype != torch.float32 or tensor.shape != shape:
            raise BadInput(
                f"{file} holds {tensor.dtype} {tuple(tensor.shape)}, not float32 {shape}: {_REMOVE}"
            )
    return Sidecar(points, extra, base_points(evaluation, store))


@dataclass(frozen=True)
class Answers:
    """What a defense answers anew.

    Attributes:
        outcomes: on attacked points and on clean images.
        before: on clean images, where the attacked function is fixed, int64 (n,); else None.
        extra: by name, on points found beside the attack's: predictions (m, draws).
        causes: why a copy of the defense answers the attacked points otherwise, by
            `bench.checks.again.Cause`, int64 (n,); None where there is no copy.
        scores: of the scored views, see `ShardComputer.scores`.
    """

    outcomes: Outcomes
    before: npt.NDArray[np.int64] | None
    extra: Mapping[str, npt.NDArray[np.int64]]
    causes: npt.NDArray[np.int64] | None
    scores: Arrays


def answer(
    record: Record,
    evaluation: Evaluation,
    defended: DefendedClassifier,
    copies: FreshCopies,
    sidecar: Sidecar,
    execution: Execution,
) -> Answers:
    """Ask a defense that was just built: first the attacked points, then the clean images.

    A defense that answers what lies near an image that it saw before as that one is right on
    attacked points only where it saw the clean ones first.
    """
    images, points = evaluation.setup.images, sidecar.points
    victim = _victim(evaluation, defended, execution)
    with exact_float32(execution.device), frozen(defended):
        logits = judged_logits(defended, points, images.ids, evaluation, execution)
        replayed = victim.verify(points.to(execution.device)).cpu().numpy()
        extra = _answers_beside(record, evaluation, defended, sidecar, execution)
        causes = _second_answers(evaluation, defended, copies, points, logits, execution)
        clean = judge(defended, images.pixels(), images.ids, evaluation, execution).numpy()
        before = None
        if victim.deterministic:
            before = victim.verify(images.pixels().to(execution.device))[:, 0].cpu().numpy()
        computer = ShardComputer(evaluation, defended, execution)
        scores = computer.scores(images.pixels().to(execution.device), points, images.ids)
    outcomes = Outcomes.of(
        defended.num_classes,
        images.ids,
        images.labels.numpy(),
        clean,
        predict(logits).cpu().numpy(),
        replayed if evaluation.stochastic else replayed[:, :0],
    )
    return Answers(outcomes, before, extra, causes, scores)


def _victim(evaluation: Evaluation, defended: DefendedClassifier, execution: Execution) -> Victim:
    """The defense as the attack saw it, to judge under the attack's own fixed noise."""
    return Victim(
        defended,
        evaluation.setup.images.ids,
        randomness=evaluation.randomness,
        gradient=evaluation.gradient,
        root=evaluation.seed,
        batch_size=execution.batch_size,
        device=execution.device,
    )


def _asking(evaluation: Evaluation, execution: Execution) -> Asking:
    return Asking(evaluation.seed, execution.batch_size, execution.device)


def _answers_beside(
    record: Record,
    evaluation: Evaluation,
    defended: DefendedClassifier,
    sidecar: Sidecar,
    execution: Execution,
) -> dict[str, npt.NDArray[np.int64]]:
    """Predictions on the points that were found beside the attack's, by name."""
    stored = {extra.name: extra for extra in record.extra}
    ids, asking = evaluation.setup.images.ids, _asking(evaluation, execution)

    def ask(points: Tensor, ids: Any, draws: int) -> npt.NDArray[np.int64]:
        return predict(asking.logits(defended, points, ids, draws=draws)).cpu().numpy()

    answers = {}
    checks = stored.get(CHECKS)
    if checks and len(sidecar.extra) == len(checks.image_ids()):
        answers[CHECKS] = ask(sidecar.extra, checks.image_ids(), evaluation.judged_draws)
    if sidecar.base is not None:
        chosen = stored[BASE_POINTS].image_ids() if BASE_POINTS in stored else ids
        if np.isin(chosen, ids).all():
            rows = torch.from_numpy(places_of(ids, chosen))
            answers[BASE_POINTS] = ask(sidecar.base[rows], chosen, base_draws(evaluation))
    return answers


def _second_answers(
    evaluation: Evaluation,
    defended: DefendedClassifier,
    copies: FreshCopies,
    points: Tensor,
    logits: Tensor,
    execution: Execution,
) -> npt.NDArray[np.int64] | None:
    if copies.make is None:
        return None
    again = answer_again(
        copies.make,
        defended,
        points,
        evaluation.setup.images.ids,
        logits[:, 0],
        _asking(evaluation, execution),
    )
    return again.causes.numpy()
