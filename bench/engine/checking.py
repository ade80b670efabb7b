"""What the checks of every run are given: copies, the base's points, and how the judge asks."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from bench.checks.again import Asking
from bench.checks.fresh import FreshCopies
from bench.checks.shard import ShardChecks
from bench.defense import DefendedClassifier
from bench.engine.compute import base_draws, places_of
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.results.store import Store


def shard_checks(
    evaluation: Evaluation,
    defended: DefendedClassifier,
    copies: FreshCopies,
    execution: Execution,
    store: Store,
) -> ShardChecks:
    """The checks of an evaluation's shards.

    Args:
        evaluation: what is run.
        defended: the defense under attack.
        copies: copies of it that have seen no image.
        execution: how to compute.
        store: where the base's record lies, if it was run.
    """
    points = base_points(evaluation, store)

    def chosen(ids: npt.NDArray[np.int64]) -> Tensor:
        assert points is not None
        return points[torch.from_numpy(places_of(evaluation.setup.images.ids, ids))]

    return ShardChecks(
        defended,
        copies,
        Asking(evaluation.seed, execution.batch_size, execution.device),
        base_draws(evaluation),
        None if points is None else chosen,
    )


def base_points(evaluation: Evaluation, store: Store) -> Tensor | None:
    """The points (n, C, H, W) of the base under the same attack; None for a control, for the base
    itself, and where the base left none.
    """
    base = None if evaluation.attack.plugin.card.control else evaluation.base()
    record = store.find(base.id) if base else None
    if record is None or record.points is None:
        return None
    try:
        data = store.read(record.points.file)
        if hashlib.sha256(data).hexdigest() != record.points.sha256:
            return None
        points: Any = load(data)["points"]
    except (OSError, SafetensorError, KeyError):
        return None
    images = evaluation.setup.images.pixels()
    if points.shape != images.shape or points.dtype != images.dtype:
        return None
    return points if bool(evaluation.setup.threat.contains(points, images).all()) else None
