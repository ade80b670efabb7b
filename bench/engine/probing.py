"""Probes the images that an attack left, once for the whole row."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from bench.checks.alike import rounding
from bench.checks.probed import arrays_of, problem
from bench.checks.probes import Probed, ProbeSetting, probe, quota
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
        chosen = self._chosen()
        images, draws = self.evaluation.setup.images, self.evaluation.judged_draws
        nothing = np.empty((0, draws), dtype=np.int64)
        if not len(chosen):
            return arrays_of(images.ids[:0], None, nothing)
        device = self.execution.device
        subset = images.at(chosen)
        points = torch.from_numpy(cast(Any, self.attacked["points"])[chosen])
        probed = Probed(
            subset.ids, subset.pixels().to(device), subset.labels.to(device), points.to(device)
        )
        result = probe(self._victim, probed, self._setting())
        found = np.array([bool(by) for by in result.by])
        judged = nothing
        if found.any():
            candidates = result.points.cpu()[torch.from_numpy(found)]
            judged = judge(
                self.defended, candidates, subset.ids[found], self.evaluation, self.execution
            ).numpy()
        return arrays_of(subset.ids, result, judged)

    def _chosen(self) -> npt.NDArray[np.int64]:
        """Positions of the images to probe, spread over those that the attack left; none under a
        control, under an attack that takes no gradients, and in a row that fails already.
        """
        control = self.evaluation.attack.plugin.card.control
        if self.failed or control or not self._took_gradients():
            return np.empty(0, dtype=np.int64)
        survivors = left(outcomes_of(self.evaluation, self.attacked)).nonzero()[0]
        n = len(self.evaluation.setup.images)
        count = min(quota(n), len(survivors))
        spread = np.linspace(0, len(survivors) - 1, count).round().astype(np.int64)
        chosen: npt.NDArray[np.int64] = survivors[spread]
        return chosen

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
