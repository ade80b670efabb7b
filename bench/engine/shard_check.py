"""Whether the arrays of a saved shard can be those of its evaluation: names, shapes and ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.checks.again import Cause
from bench.checks.shard import (
    BACKWARDS,
    BASE,
    CAUSES,
    COPIED,
    FORWARDS,
    GAPS,
    MOVED,
    NOT_JUDGED,
)
from bench.defense import DefendedClassifier
from bench.engine.compute import FORM, NARROW, SLOPES, base_draws, fixed_draws
from bench.engine.evaluation import Evaluation
from bench.engine.shards import Arrays, Shard
from bench.results.findings import Finding
from bench.results.outcomes import WRONG_BEFORE
from bench.results.views import DETECTOR
from bench.victim import SLOPE_COUNTS

_COUNTS = (*(f"{SLOPES}{name}" for name in SLOPE_COUNTS), CAUSES, FORWARDS, BACKWARDS)
"""Arrays of one count an image."""


@dataclass(frozen=True)
class ShardCheck:
    """Says what is wrong with the arrays of a shard; empty where nothing is.

    Arrays that are not known here are left to those who read them.
    """

    evaluation: Evaluation
    defended: DefendedClassifier

    def __call__(self, shard: Shard, arrays: Arrays) -> str:
        missing = sorted(self._names() - set(arrays))
        if missing:
            return f"{missing[0]} is missing"
        return next(self._problems(shard, arrays), "")

    def _names(self) -> set[str]:
        names = {"points", "clean", "adversarial", "replayed", "stages", "forwards", "backwards"}
        names |= {"reprojected", "blocked", "findings", "seconds", FORM}
        names |= {*_COUNTS, GAPS, MOVED, BASE, COPIED}
        for view in self.defended.scored:
            names |= {"moved", f"score/{view}/clean", f"score/{view}/adversarial"}
        return names

    def _problems(self, shard: Shard, arrays: Arrays) -> Iterator[str]:
        n, evaluation = shard[1] - shard[0], self.evaluation
        K, judged = evaluation.setup.classifier.num_classes, evaluation.judged_draws
        fixed = fixed_draws(evaluation.randomness) if self.defended.stochastic else 0
        answers = {"clean": judged, "adversarial": judged, "replayed": fixed}
        for name, draws in answers.items():
            yield from _integers(name, arrays[name], (n, draws), -1, K)
        stages = len(evaluation.attack.plugin.stages)
        yield from _integers("stages", arrays["stages"], (n,), WRONG_BEFORE, stages)
        counts = {"forwards": n, "backwards": n, "reprojected": 1, "blocked": 1}
        for name, size in {**counts, **dict.fromkeys(_COUNTS, n), COPIED: 1}.items():
            yield from _integers(name, arrays[name], (size,), 0, 1 << 62)
        yield from self._score_problems(n, arrays, K)
        yield from _integers(FORM, arrays[FORM], (n,), 0, NARROW + 1)
        yield from _integers(CAUSES, arrays[CAUSES], (n,), 0, len(Cause))
        yield from _integers(BASE, arrays[BASE], (n, base_draws(evaluation)), NOT_JUDGED, K)
        yield from _check_problems(n, arrays)
        seconds: Any = arrays["seconds"]
        if seconds.shape != (1,) or seconds.dtype.kind != "f" or not 0 <= seconds[0] < np.inf:
            yield "seconds is no time"
        for text in arrays["findings"].ravel():
            Finding.model_validate_json(str(text))
        yield from self._point_problems(shard, arrays["points"])

    def _score_problems(self, n: int, arrays: Arrays, K: int) -> Iterator[str]:
        for view in self.defended.scored:
            for name in (f"score/{view}/clean", f"score/{view}/adversarial"):
                scores: Any = arrays[name]
                if view != DETECTOR:
                    yield from _integers(name, scores, (n,), -1, K)
                elif scores.shape != (n,) or scores.dtype.kind != "f":
                    yield f"{name} holds no scores of {n} images"
        if self.defended.scored and arrays["moved"].shape != (n,):
            yield "moved is of other images"

    def _point_problems(self, shard: Shard, points: Any) -> Iterator[str]:
        images = self.evaluation.setup.images.at(np.arange(*shard)).pixels()
        if points.dtype != np.float32 or points.shape != tuple(images.shape):
            yield f"points are {points.dtype} {points.shape}, not float32 {tuple(images.shape)}"
        elif not np.isfinite(points).all():
            yield "points are not finite"
        else:
            inside = self.evaluation.setup.threat.contains(torch.from_numpy(points), images)
            if not bool(inside.all()):
                yield f"{int((~inside).sum())} points lie outside ball or box"


def _check_problems(n: int, arrays: Arrays) -> Iterator[str]:
    gaps: Any = arrays[GAPS]
    if gaps.shape != (n,) or gaps.dtype.kind != "f" or not (gaps >= 0).all():
        yield f"{GAPS} holds no differences of {n} images"
    if arrays[MOVED].ndim != 1 or arrays[MOVED].dtype.kind != "U":
        yield f"{MOVED} holds no names"


def _integers(
    name: str, values: npt.NDArray[Any], shape: tuple[int, ...], low: int, high: int
) -> Iterator[str]:
    """A problem unless these are integers of this shape in [low, high)."""
    if values.dtype.kind not in "iub" or values.shape != shape:
        yield f"{name} is {values.dtype} {values.shape}, not integers {shape}"
    elif values.size and not (low <= int(values.min()) and int(values.max()) < high):
        yield f"{name} is not in [{low}, {high})"
