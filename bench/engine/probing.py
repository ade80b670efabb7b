"""Probes the images that an attack left, once for the whole row."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from bench.checks.alike import rounding
from bench.checks.probed import MANY, arrays_of, problem
from bench.checks.probes import (
    ENOUGH,
    MOST_PROBED,
    MOST_SEARCHED,
    SOME,
    Probed,
    ProbeResult,
    ProbeSetting,
    probe,
    quota,
    together,
)
from bench.checks.verdicts import FLAT_SHARE, flat_share, left
from bench.defense import DefendedClassifier, gradient_name
from bench.engine.compute import SLOPES, judge
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.engine.inspection import Inspection
from bench.engine.recording import PROBE_SECONDS, findings_of, outcomes_of
from bench.engine.shards import Arrays, Shard
from bench.randomness import RandomnessModel
from bench.victim import SLOPE_COUNTS, Victim

Positions = npt.NDArray[np.int64]
"""Where images stand in the evaluation order."""


def row_probe(
    evaluation: Evaluation,
    defended: DefendedClassifier,
    execution: Execution,
    attacked: Arrays,
    inspection: Inspection,
) -> RowProbe:
    """The probe of a row whose shards are all there; see `RowProbe`."""
    found = findings_of(evaluation, attacked, inspection)
    failed = any(finding.verdict == "fail" for finding in found)
    inference = inspection.inference
    prediction = inference.passes + (inference.denoiser_passes or 0.0)
    loops = inference.optimises
    return RowProbe(evaluation, defended, execution, attacked, loops, prediction, failed)


def _spread(positions: Positions, most: int) -> Positions:
    """At most so many of these, evenly spread."""
    count = min(most, len(positions))
    chosen: Positions = positions[
        np.linspace(0, len(positions) - 1, count).round().astype(np.int64)
    ]
    return chosen


@dataclass(frozen=True)
class RowProbe:
    """Probes a row whose shards are all there.

    Which images are probed depends on the row alone, and so does what is found: neither on the
    batch size nor on who computed the shards.

    Attributes:
        attacked: the arrays of all shards.
        loops: whether the forward pass runs an optimisation loop.
        prediction: passes through networks that one prediction takes.
        failed: whether the row fails already, so that nothing more need be shown.
    """

    evaluation: Evaluation
    defended: DefendedClassifier
    execution: Execution
    attacked: Arrays
    loops: bool
    prediction: float
    failed: bool

    def __call__(self, _: Shard = (0, 0)) -> Arrays:
        """The arrays of `bench.checks.probed`, and the seconds they took."""
        began = time.perf_counter()
        arrays = self._probed()
        arrays[PROBE_SECONDS] = np.array([time.perf_counter() - began])
        return arrays

    def check(self, _: Shard, arrays: Arrays) -> str:
        """What is wrong with stored arrays; empty where nothing is."""
        setup = self.evaluation.setup
        seconds: Any = arrays.get(PROBE_SECONDS, np.zeros(0))
        if seconds.shape != (1,) or not 0 <= float(seconds[0]) < np.inf:
            return f"{PROBE_SECONDS} is no time"
        return problem(
            cast(Any, arrays),
            setup.classifier.num_classes,
            self.evaluation.judged_draws,
            tuple(setup.images.images.shape[1:]),
        )

    def _probed(self) -> dict[str, Any]:
        images, draws = self.evaluation.setup.images, self.evaluation.judged_draws
        nothing = np.empty((0, draws), dtype=np.int64)
        chosen, result = self._looked_at()
        if result is None:
            return arrays_of(images.ids[:0], None, nothing, nothing[:, 0])
        ids, found = images.at(chosen).ids, np.array([bool(by) for by in result.by])
        judged = nothing
        if found.any():
            candidates = result.points.cpu()[torch.from_numpy(found)]
            judged = judge(
                self.defended, candidates, ids[found], self.evaluation, self.execution
            ).numpy()
        asked = cast(Any, self.attacked[f"{SLOPES}asked"])[chosen]
        return arrays_of(ids, result, judged, asked)

    def _looked_at(self) -> tuple[Positions, ProbeResult | None]:
        """Which images were probed, in evaluation order, and what came out.

        As many as the row's budget bears. Where those call for a decision, more take part in it: a
        decision on a handful of images could not be one.
        """
        setting, candidates = self._setting(), self._candidates()
        count = min(quota(len(self.evaluation.setup.images)), len(candidates))
        spread = np.linspace(0, len(candidates) - 1, count).round().astype(np.int64)
        first, more = candidates[spread], np.delete(candidates, spread)
        results = [probe(self._victim, self._images(first), setting)] if count else []
        decided = any(one.decided for one in results) or (setting.suspicious and not count)
        broken = sum(bool(by) for one in results for by in one.by)
        if decided and broken < ENOUGH and len(more):
            # The slopes are known; what is left is to search.
            search = replace(setting, suspicious=True, declared=True)
            results.append(probe(self._victim, self._images(more), search))
            first = np.concatenate([first, more])
        broken = sum(bool(by) for one in results for by in one.by)
        survivors = self._survivors()
        rest = np.setdiff1d(survivors, first)
        if decided:
            some = broken >= SOME
        else:
            share = len(survivors) / len(self.evaluation.setup.images)
            some = broken * share >= MANY * len(first)
        if some and 0 < broken < ENOUGH and len(rest):
            # What hides some of the images shows on all that the attack left.
            rest = _spread(rest, MOST_SEARCHED)
            search = replace(setting, suspicious=decided, declared=True)
            results.append(probe(self._victim, self._images(rest), search))
            first = np.concatenate([first, rest])
        if not results:
            return first, None
        order = np.argsort(first)
        return first[order], together(results, order)

    def _images(self, positions: Positions) -> Probed:
        device, subset = self.execution.device, self.evaluation.setup.images.at(positions)
        points = torch.from_numpy(cast(Any, self.attacked["points"])[positions])
        return Probed(
            subset.ids, subset.pixels().to(device), subset.labels.to(device), points.to(device)
        )

    def _candidates(self) -> Positions:
        """Positions of images that may be probed, spread over those that the attack left; none
        under a control, under an attack that takes no gradients, and in a row that fails already.
        """
        control = self.evaluation.attack.plugin.card.control
        if self.failed or control or not self._took_gradients():
            return np.empty(0, dtype=np.int64)
        return _spread(self._survivors(), MOST_PROBED)

    def _survivors(self) -> Positions:
        survivors: Positions = left(outcomes_of(self.evaluation, self.attacked)).nonzero()[0]
        return survivors

    def _took_gradients(self) -> bool:
        arrays: Any = self.attacked
        return bool(arrays["backwards"].any() or arrays["blocked"].any())

    def _setting(self) -> ProbeSetting:
        evaluation, arrays = self.evaluation, cast(Any, self.attacked)
        counts = {name: arrays[f"{SLOPES}{name}"] for name in SLOPE_COUNTS}
        blocked = bool(arrays["blocked"].any())
        return ProbeSetting(
            threat=evaluation.setup.threat,
            randomness=evaluation.randomness,
            gradient=evaluation.gradient,
            declared=gradient_name(evaluation.gradient) != "full",
            transfers=gradient_name(evaluation.gradient) in self.defended.transfers,
            rounding=rounding(self.defended),
            prediction=self.prediction,
            suspicious=self.loops or blocked or flat_share(counts) > FLAT_SHARE,
        )

    def _victim(
        self, ids: npt.NDArray[np.int64], randomness: RandomnessModel, gradient: str
    ) -> Victim:
        return Victim(
            self.defended,
            ids,
            randomness=randomness,
            gradient=gradient,
            root=self.evaluation.seed,
            batch_size=self.execution.batch_size,
            device=self.execution.device,
        )
