"""Attacks and judges one shard of an evaluation."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.checks.shard import Attacked, ShardChecks
from bench.checks.state import State, state_of
from bench.data.dataset import ImageSet
from bench.defense import DefendedClassifier
from bench.engine.build import own_copy
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.engine.searching import PROBED, Comparison, Quick
from bench.engine.shards import Arrays, Shard
from bench.models.narrow import Narrow
from bench.randomness import Query, RandomnessModel, judging
from bench.results.outcomes import NO_TARGET, WRONG_BEFORE
from bench.results.views import DETECTOR
from bench.victim import SLOPE_COUNTS, VERDICT_DRAWS, FoldUse, Victim, predict

SLOPES = "slopes/"
"""Before the names of `SLOPE_COUNTS` in a shard's arrays."""

FORM = "form"
"""Of each image, what its search read: 0 the defense itself, else one of the next two."""

FOLDED, NARROW = 1, 2

REFUTED_SHARE = 0.01
"""Of the successes of a search under a fold, how many the defense itself may answer otherwise. In
bfloat16 any number: it is asked about all that come near."""


def report_begun(execution: Execution, evaluation: Evaluation) -> None:
    """Tell the progress callback that work on a shard begins."""
    if execution.progress:
        execution.progress(evaluation, 0, len(evaluation.setup.images), 0.0)


def report_shard(
    execution: Execution, evaluation: Evaluation, shard: Shard, arrays: Arrays
) -> None:
    """Tell the progress callback of a finished shard."""
    if execution.progress:
        images = evaluation.setup.images
        labels = images.at(np.arange(*shard)).labels.numpy()[:, None]
        right = float(((arrays["adversarial"] == labels) & (arrays["clean"] == labels)).mean())
        execution.progress(evaluation, shard[1] - shard[0], len(images), right)


@dataclass(frozen=True)
class ShardComputer:
    """Attacks and judges one shard of an evaluation.

    Attributes:
        checks: what is checked beside it; None for outcomes alone.
        form: the quick form of the defense that searches may read.
    """

    evaluation: Evaluation
    defended: DefendedClassifier
    execution: Execution
    checks: ShardChecks | None = None
    form: Quick | None = None

    def report(self, shard: Shard, arrays: Arrays) -> None:
        """Report a finished shard to the progress callback."""
        report_shard(self.execution, self.evaluation, shard, arrays)

    def __call__(self, shard: Shard) -> Arrays:
        """Arrays of a finished shard, images along the first axis."""
        report_begun(self.execution, self.evaluation)
        began = time.perf_counter()
        subset = self.evaluation.setup.images.at(np.arange(*shard))
        arrays = self._attack(subset)
        arrays["seconds"] = np.array([time.perf_counter() - began])
        return arrays

    def _attack(self, subset: ImageSet) -> Arrays:
        images = subset.pixels().to(self.execution.device)
        labels = subset.labels.to(self.execution.device)
        clean_logits = judged_logits(
            self.defended, images, subset.ids, self.evaluation, self.execution
        )
        clean = predict(clean_logits).cpu()
        # Caches are full by now: what moves from here on is state.
        before = state_of(self.defended) if self.checks else State()
        fixed = self._fixed(images, subset.ids, clean)
        # An image on which the attacked function is fixed and wrong is broken without an attack.
        everything = torch.ones(len(images), dtype=torch.bool)
        unbroken = everything if fixed is None else fixed == subset.labels
        arrays = self._untouched(images, fixed)
        arrays["judged"] = clean_logits[:, 0].cpu().numpy().copy()
        use = FoldUse()
        unit = self.evaluation.attack.plugin.unit(self.evaluation.stochastic) or len(subset)
        for block in torch.arange(len(subset)).split(unit):
            positions = block[unbroken[block]]
            if len(positions):
                victim = self._victim(subset.ids[positions.numpy()])
                victim.fold_use = use
                self._attack_block(victim, images, labels, positions, arrays)
        if self.form is not None and use.queries:
            if self._misled(self.form, use, arrays["points"], subset.ids):
                return replace(self, form=None)._attack(subset)
            arrays[FORM][:] = kind_of(self.form)
        attacked, judged = arrays.pop("attacked"), torch.from_numpy(arrays.pop("judged"))
        stochastic = self.defended.stochastic
        points = torch.from_numpy(arrays["points"])
        adversarial = attacked
        if stochastic:
            logits = judged_logits(
                self.defended, points, subset.ids, self.evaluation, self.execution
            )
            adversarial, judged = predict(logits).cpu().numpy(), logits[:, 0].cpu()
        arrays |= {
            **self.scores(images, points, subset.ids),
            "clean": clean.numpy(),
            "adversarial": adversarial,
            "replayed": attacked if stochastic else attacked[:, :0],
        }
        if self.checks:
            arrays |= self.checks(Attacked(subset.ids, subset.labels, points, judged, before))
        return arrays

    def scores(self, images: Tensor, points: Tensor, ids: Any) -> dict[str, Any]:
        """What the scored views say of clean images and of points, under the judge's first draw."""
        if not self.defended.scored:
            return {}
        observer = _observer(self.defended, ids, self.evaluation, self.execution, draws=1)
        rows = torch.arange(len(images), device=images.device)
        scores: dict[str, Any] = {"moved": (points != images.cpu()).flatten(1).any(1).numpy()}
        for view in self.defended.scored:
            for which, pixels in (("clean", images), ("adversarial", points.to(images.device))):
                output = observer.logits(pixels, rows, Query(), view)[:, 0]
                value = output[:, 1] - output[:, 0] if view == DETECTOR else predict(output)
                scores[f"score/{view}/{which}"] = value.cpu().numpy()
        return scores

    def _untouched(self, images: Tensor, fixed: Tensor | None) -> dict[str, Any]:
        """What is known of a shard before any of its images is attacked; images along the first
        axis.
        """
        n = len(images)
        draws = fixed_draws(self.evaluation.randomness) if self.defended.stochastic else 0
        unknown = np.zeros((n, draws), dtype=np.int64)
        return {
            "points": images.cpu().numpy().copy(),
            "attacked": unknown if fixed is None else fixed.numpy()[:, None].copy(),
            "stages": np.full(n, WRONG_BEFORE, dtype=np.int64),
            "targets": np.full(n, NO_TARGET, dtype=np.int64),
            # An image that is not attacked is wrong as it is.
            "distances": np.zeros(n, dtype=np.float64),
            "forwards": np.zeros(n, dtype=np.int64),
            "backwards": np.zeros(n, dtype=np.int64),
            "reprojected": np.zeros(1, dtype=np.int64),
            "blocked": np.zeros(1, dtype=np.int64),
            **{f"{SLOPES}{name}": np.zeros(n, dtype=np.int64) for name in SLOPE_COUNTS},
            "findings": np.array([], dtype=np.str_),
            FORM: np.zeros(n, dtype=np.int64),
        }

    def _misled(self, form: Quick, use: FoldUse, points: Any, ids: Any) -> bool:
        """Whether the quick form told a search what the defense does not say."""
        refuted = use.refuted > max(1, REFUTED_SHARE * use.successes)
        if refuted and kind_of(form) == FOLDED:
            return True
        chosen = np.linspace(0, len(points) - 1, min(PROBED, len(points))).astype(np.int64)
        comparison = Comparison(self.defended, form, self.evaluation.gradient)
        images = torch.from_numpy(points[chosen]).to(self.execution.device)
        return not comparison.leads_alike(images, ids[chosen])

    def _attack_block(
        self,
        victim: Victim,
        images: Tensor,
        labels: Tensor,
        positions: Tensor,
        arrays: dict[str, Any],
    ) -> None:
        """Attack the images at these positions in one call and enter the result into `arrays`."""
        rows = positions.to(images.device)
        threat = self.evaluation.setup.threat
        result = self.evaluation.attack.plugin(victim, images[rows], labels[rows], threat)
        by_image = {
            "points": result.points,
            "attacked": result.predictions,
            "stages": result.stages,
            "forwards": victim.forwards,
            "backwards": victim.backwards,
            **{f"{SLOPES}{name}": counts for name, counts in victim.slopes.by_name().items()},
        }
        if result.targets is not None:
            by_image["targets"] = result.targets
        if result.distances is not None:
            by_image["distances"] = result.distances
        if not self.defended.stochastic and victim.verified is not None:
            by_image["judged"] = victim.verified[:, 0]
        for name, tensor in by_image.items():
            arrays[name][positions.numpy()] = tensor.cpu().numpy()
        arrays["reprojected"] += result.reprojected
        arrays["blocked"] += victim.gradient_blocked
        texts = [finding.model_dump_json() for finding in result.findings]
        arrays["findings"] = np.unique(np.array([*arrays["findings"], *texts], dtype=np.str_))

    def _fixed(self, images: Tensor, ids: Any, clean: Tensor) -> Tensor | None:
        """Predictions (n,) of the attacked function on the clean images where that function is
        fixed, else None.
        """
        if not self.defended.stochastic:
            return clean[:, 0]
        if not self.evaluation.randomness.deterministic:
            return None
        return self._victim(ids).verify(images)[:, 0].cpu()

    @cached_property
    def _base(self) -> DefendedClassifier:
        """The undefended classifier, copied where an attack asks for it and not before."""
        base = own_copy(self.evaluation.setup.classifier)[0].to(self.execution.device)
        return base.requires_grad_(False)

    def _victim(self, ids: Any) -> Victim:
        victim = Victim(
            self.defended,
            ids,
            randomness=self.evaluation.randomness,
            gradient=self.evaluation.gradient,
            root=self.evaluation.seed,
            batch_size=self.execution.batch_size,
            device=self.execution.device,
            base=(lambda: self._base) if self.evaluation.has_base else None,
            fold=self.form,
        )
        victim.evaluated = self.evaluation.setup.images
        victim.places = places_of(victim.evaluated.ids, ids)
        return victim


def kind_of(form: Quick) -> int:
    """`FOLDED` or `NARROW`."""
    return NARROW if isinstance(form, Narrow) else FOLDED


def places_of(all_ids: Any, ids: Any) -> Any:
    """Where these ids stand among all ids, which are unique: int64 (n,)."""
    order = np.argsort(all_ids)
    return order[np.searchsorted(all_ids, ids, sorter=order)]


def fixed_draws(randomness: RandomnessModel) -> int:
    """Predictions an image that a replayed verdict rests on."""
    if not randomness.has_fixed_noise:
        return 0
    return VERDICT_DRAWS if randomness.freeze else randomness.k


def base_draws(evaluation: Evaluation) -> int:
    """Draws under which the base's points are judged on the defense."""
    return min(2, evaluation.judged_draws)


def judge(
    defended: DefendedClassifier,
    images: Tensor,
    ids: Any,
    evaluation: Evaluation,
    execution: Execution,
) -> Tensor:
    """Predictions of the deployed defense on fresh draws: int64 (n, draws), on the CPU.

    The draws are those of the evaluation stream, which no attack has seen.
    """
    return predict(judged_logits(defended, images, ids, evaluation, execution)).cpu()


def judged_logits(
    defended: DefendedClassifier,
    images: Tensor,
    ids: Any,
    evaluation: Evaluation,
    execution: Execution,
) -> Tensor:
    """The logits (n, draws, K) on which `judge` rests."""
    images = images.to(execution.device)
    observer = _observer(defended, ids, evaluation, execution, draws=evaluation.judged_draws)
    rows = torch.arange(len(images), device=execution.device)
    return observer.logits(images, rows, Query())


def _observer(
    defended: DefendedClassifier,
    ids: Any,
    evaluation: Evaluation,
    execution: Execution,
    *,
    draws: int,
) -> Victim:
    """The defense as the judge asks it, with this many draws an image."""
    return Victim(
        defended,
        ids,
        randomness=judging(draws),
        root=evaluation.seed,
        batch_size=execution.batch_size,
        device=execution.device,
    )


def merged(shards: dict[Shard, Arrays]) -> Arrays:
    """The arrays of all shards joined along the images, in evaluation order."""
    ordered = [shards[shard] for shard in sorted(shards)]
    return {name: np.concatenate([arrays[name] for arrays in ordered]) for name in ordered[0]}
