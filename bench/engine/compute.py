"""Attacks and judges one shard of an evaluation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data.dataset import ImageSet
from bench.defense import DefendedClassifier
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.engine.shards import Arrays, Shard
from bench.randomness import Query, RandomnessModel, judging
from bench.results.outcomes import WRONG_BEFORE
from bench.results.views import DETECTOR
from bench.victim import VERDICT_DRAWS, Victim, predict


def _report(execution: Execution, evaluation: Evaluation, images: int, right: float) -> None:
    if execution.progress:
        execution.progress(evaluation, images, len(evaluation.setup.images), right)


@dataclass(frozen=True)
class ShardComputer:
    """Attacks and judges one shard of a cell."""

    evaluation: Evaluation
    defended: DefendedClassifier
    execution: Execution

    def report(self, shard: Shard, arrays: Arrays) -> None:
        """Tell the progress callback of a finished shard."""
        labels = self.evaluation.setup.images.at(np.arange(*shard)).labels.numpy()[:, None]
        right = float(((arrays["adversarial"] == labels) & (arrays["clean"] == labels)).mean())
        _report(self.execution, self.evaluation, shard[1] - shard[0], right)

    def __call__(self, shard: Shard) -> Arrays:
        """Arrays of a finished shard, images along the first axis."""
        _report(self.execution, self.evaluation, 0, 0.0)
        began = time.perf_counter()
        subset = self.evaluation.setup.images.at(np.arange(*shard))
        arrays = self._attack(subset)
        arrays["seconds"] = np.array([time.perf_counter() - began])
        return arrays

    def _attack(self, subset: ImageSet) -> Arrays:
        images = subset.pixels().to(self.execution.device)
        labels = subset.labels.to(self.execution.device)
        clean = self._judge(images, subset.ids)
        fixed = self._fixed(images, subset.ids, clean)
        # Where the attacked function is fixed and wrong on the clean image, the image is broken
        # already.
        chosen = (
            torch.ones(len(images), dtype=torch.bool) if fixed is None else fixed == subset.labels
        )
        arrays = self._untouched(images, fixed)
        for block in torch.arange(len(subset)).split(
            self.evaluation.attack.plugin.unit(self.evaluation.stochastic) or len(subset)
        ):
            here = block[chosen[block]]
            if len(here):
                self._attack_block(images, labels, subset.ids, here, arrays)
        answers = arrays.pop("answers")
        stochastic = self.defended.stochastic
        points = torch.from_numpy(arrays["points"])
        return {
            **arrays,
            **self._scores(images, points, subset.ids),
            "clean": clean.numpy(),
            "adversarial": self._judge(points, subset.ids).numpy() if stochastic else answers,
            "replayed": answers if stochastic else answers[:, :0],
        }

    def _scores(self, images: Tensor, points: Tensor, ids: Any) -> dict[str, Any]:
        """What the scored views say of clean images and of points, under the judge's first draw."""
        if not self.defended.scored:
            return {}
        observer = self._observer(ids)
        rows = torch.arange(len(images), device=images.device)
        found: dict[str, Any] = {"moved": (points != images.cpu()).flatten(1).any(1).numpy()}
        for view in self.defended.scored:
            for which, pixels in (("clean", images), ("adversarial", points.to(images.device))):
                output = observer.logits(pixels, rows, Query(), view)[:, 0]
                value = output[:, 1] - output[:, 0] if view == DETECTOR else predict(output)
                found[f"score/{view}/{which}"] = value.cpu().numpy()
        return found

    def _untouched(self, images: Tensor, fixed: Tensor | None) -> dict[str, Any]:
        """What is known of a shard before any of its images is attacked; images along the first
        axis.
        """
        n = len(images)
        fixed_draws = _fixed_draws(self.evaluation.randomness) if self.defended.stochastic else 0
        return {
            "points": images.cpu().numpy().copy(),
            "answers": np.zeros((n, fixed_draws), dtype=np.int64)
            if fixed is None
            else fixed.numpy()[:, None].copy(),
            "stages": np.full(n, WRONG_BEFORE, dtype=np.int64),
            "forwards": np.zeros(n, dtype=np.int64),
            "backwards": np.zeros(n, dtype=np.int64),
            "reprojected": np.zeros(1, dtype=np.int64),
            "blocked": np.zeros(1, dtype=np.int64),
            "findings": np.array([], dtype=np.str_),
        }

    def _attack_block(
        self, images: Tensor, labels: Tensor, ids: Any, here: Tensor, arrays: dict[str, Any]
    ) -> None:
        """Attack the images at positions `here` in one call and enter what came of it."""
        victim = self._victim(ids[here.numpy()])
        there = here.to(images.device)
        attacked = self.evaluation.attack.plugin(
            victim, images[there], labels[there], self.evaluation.setup.threat
        )
        found = {
            "points": attacked.points,
            "answers": attacked.predictions,
            "stages": attacked.stages,
            "forwards": victim.forwards,
            "backwards": victim.backwards,
        }
        for name, tensor in found.items():
            arrays[name][here.numpy()] = tensor.cpu().numpy()
        arrays["reprojected"] += attacked.reprojected
        arrays["blocked"] += victim.gradient_blocked
        texts = [finding.model_dump_json() for finding in attacked.findings]
        arrays["findings"] = np.unique(np.array([*arrays["findings"], *texts], dtype=np.str_))

    def _fixed(self, images: Tensor, ids: Any, clean: Tensor) -> Tensor | None:
        """Predictions (n,) of the attacked function on the clean images where that function is
        fixed, else None.
        """
        if not self.defended.stochastic:
            return clean[:, 0]
        return (
            self._victim(ids).verify(images)[:, 0].cpu()
            if self.evaluation.randomness.deterministic
            else None
        )

    def _victim(self, ids: Any) -> Victim:
        return Victim(
            self.defended,
            ids,
            randomness=self.evaluation.randomness,
            gradient=self.evaluation.gradient,
            root=self.evaluation.seed,
            batch_size=self.execution.batch_size,
            device=self.execution.device,
        )

    def _observer(self, ids: Any) -> Victim:
        size, device = self.execution.batch_size, self.execution.device
        return Victim(
            self.defended,
            ids,
            randomness=judging(1),
            root=self.evaluation.seed,
            batch_size=size,
            device=device,
        )

    def _judge(self, images: Tensor, ids: Any) -> Tensor:
        return judge(self.defended, images, ids, self.evaluation, self.execution)


def _fixed_draws(randomness: RandomnessModel) -> int:
    """Predictions an image that a replayed verdict rests on."""
    if not randomness.has_fixed_noise:
        return 0
    return VERDICT_DRAWS if randomness.freeze else randomness.k


def judge(
    defended: DefendedClassifier,
    images: Tensor,
    ids: Any,
    evaluation: Evaluation,
    execution: Execution,
) -> Tensor:
    """Predictions of the deployed defense on fresh draws of the evaluation stream: int64 (n,
    draws), on the CPU.
    """
    images = images.to(execution.device)
    observer = Victim(
        defended,
        ids,
        randomness=judging(evaluation.judged_draws),
        root=evaluation.seed,
        batch_size=execution.batch_size,
        device=execution.device,
    )
    rows = torch.arange(len(images), device=execution.device)
    return predict(observer.logits(images, rows, Query())).cpu()


def merged(shards: dict[Shard, Arrays]) -> Arrays:
    ordered = [shards[shard] for shard in sorted(shards)]
    return {name: np.concatenate([arrays[name] for arrays in ordered]) for name in ordered[0]}
