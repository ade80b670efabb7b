"""The row under audit: its images, its attack with other parameters, and what breaks besides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor

from bench.attack import Attack
from bench.audit.limits import DECISIVE_DROP, MOST_PASSES, Scale
from bench.defense import DefendedClassifier
from bench.engine.build import build, own_copy
from bench.engine.compute import judge
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.errors import BadInput
from bench.losses import Loss, margin
from bench.maximise import Trace, ascend
from bench.plugins.create import BASE
from bench.randomness import RandomnessModel
from bench.results.arrays import Bools, Floats
from bench.results.comparisons import beats
from bench.results.extra import ExtraPoints
from bench.results.findings import ids_of
from bench.results.record import Record
from bench.threat import ThreatModel
from bench.victim import Victim, frozen

Rows = npt.NDArray[np.int64]
"""Places among the audited images."""

Search = Callable[[Rows], Tensor]
"""Rows (m,) to their points (m, C, H, W)."""

Elsewhere = Callable[[Sequence[Tensor], npt.NDArray[np.int64]], list[npt.NDArray[np.int64]]]
"""Sets of points (n, C, H, W) and their ids to the defense's answers (n, draws) on each, in a
process where it has seen nothing else."""

AUDIT = "audit"
"""Name of the extra points of an audit."""

FALLBACK_STEPS = 20
_RESTART = 1 << 14
"""Restarts of the audit's own searches begin here, clear of the row's attack."""


@dataclass(frozen=True)
class Comparison:
    """A search beside the row's attack, on the same images.

    Attributes:
        rows: those that the row's attack left and the search broke.
        only_search, only_row: images that only one of the two broke, the second estimated from a
            sample for as many images as `n`.
        n: how many images were compared: those of a sample of what the row's attack left, and as
            many that it broke as there are in the record beside them.
        complete: whether the search ran on images that the row's attack had broken, too; without
            that it has not been shown to be the stronger one.
    """

    rows: Rows
    only_search: int
    only_row: int
    n: int
    complete: bool

    @property
    def gain(self) -> float:
        """Share of the images by which the search breaks more."""
        return (self.only_search - self.only_row) / self.n if self.n else 0.0

    @property
    def beats(self) -> bool:
        """Whether the search beats the row's attack; see `bench.results.comparisons.beats`."""
        a = np.zeros(self.n, dtype=np.bool_)
        b = a.copy()
        a[: self.only_search] = True
        b[self.only_search : self.only_search + self.only_row] = True
        return bool(self.n) and beats(a, b)


@dataclass
class _Spent:
    victims: list[Victim] = field(default_factory=list)
    judged: int = 0


class AuditedRow:
    """One evaluation under audit.

    Args:
        evaluation: the row.
        defended: its defended classifier, built anew.
        record: what the row's attack achieved.
        execution: how to compute.
        scale: how much to compute.
        points: the points that the row's attack found, (n, C, H, W), of all its images; None where
            they are not at hand.
        elsewhere: what the defense answers in a new process; None where there cannot be one.

    Attributes:
        positions: place of each audited image among the evaluation's, (m,).
        images, labels, true: of the audited images, (m, C, H, W) and (m,); `true` on the host.
        share: the share of right answers that the row's attack left, (m,).
        left: rows of which the row's attack left more than half of the draws right.
        far: points of large margin on the base, (m, C, H, W), once a check has made them.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        defended: DefendedClassifier,
        record: Record,
        execution: Execution,
        scale: Scale,
        points: Tensor | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.evaluation, self.defended, self.record = evaluation, defended, record
        self.elsewhere = elsewhere
        self.far: Tensor | None = None
        self.execution, self.scale = execution, scale
        self.positions = chosen_images(record, scale.images)
        subset = evaluation.setup.images.at(self.positions)
        self.ids = subset.ids
        self.images = subset.pixels().to(execution.device)
        self.labels = subset.labels.to(execution.device)
        self.true = subset.labels.numpy()
        self.points = self.images if points is None else points[self.positions].to(execution.device)
        outcomes = record.outcomes
        self._clean = outcomes.correct("clean")[self.positions]
        self.share: Floats = outcomes.correct("adversarial")[self.positions].mean(1)
        self.left: Rows = np.flatnonzero(self.share > 0.5)
        every = outcomes.correct("adversarial").mean(1)[outcomes.correct("clean").mean(1) > 0.5]
        self._broken_by_left = float((every <= 0.5).sum() / max((every > 0.5).sum(), 1))
        self._best = self.share.copy()
        self._extra: dict[int, tuple[npt.NDArray[np.int64], str]] = {}
        self._spent = _Spent()

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def threat(self) -> ThreatModel:
        return self.evaluation.setup.threat

    @property
    def broken(self) -> Rows:
        """Rows that the row's attack broke."""
        return np.setdiff1d(np.arange(len(self)), self.left)

    def ids_at(self, rows: Sequence[int] | Rows) -> str:
        """Ids of these rows, folded."""
        return ids_of(self.ids[np.asarray(rows, dtype=np.int64)]) if len(rows) else ""

    # Asking -------------------------------------------------------------------------------------

    def victim(
        self,
        rows: Rows,
        *,
        randomness: RandomnessModel | None = None,
        gradient: str | None = None,
        defended: DefendedClassifier | None = None,
        trace: Trace | None = None,
    ) -> Victim:
        """The defense as the row's attack sees it, or with other draws or another gradient."""
        evaluation = self.evaluation
        victim = Victim(
            self.defended if defended is None else defended,
            self.ids[rows],
            randomness=evaluation.randomness if randomness is None else randomness,
            gradient=evaluation.gradient if gradient is None else gradient,
            root=evaluation.seed,
            batch_size=self.execution.batch_size,
            device=self.execution.device,
            base=(lambda: self.undefended) if self.has_base else None,
        )
        victim.places = self.positions[rows]
        victim.evaluated = evaluation.setup.images
        victim.trace = trace
        self._spent.victims.append(victim)
        return victim

    @property
    def has_base(self) -> bool:
        return self.evaluation.defense.name == BASE or self.evaluation.base() is not None

    @cached_property
    def undefended(self) -> DefendedClassifier:
        base = own_copy(self.evaluation.setup.classifier)[0].to(self.execution.device)
        return base.requires_grad_(False)

    def judged(self, points: Tensor, rows: Rows) -> Bools:
        """Whether the deployed defense is right on these points of these rows under the judge's
        draws, and on the clean images too; bool (m, draws).
        """
        return self.right(self._answers(points, rows), rows)

    def _answers(self, points: Tensor, rows: Rows) -> npt.NDArray[np.int64]:
        answers = judge(self.defended, points, self.ids[rows], self.evaluation, self.execution)
        self._spent.judged += answers.numel()
        return np.asarray(answers.numpy(), dtype=np.int64)

    def right(self, answers: npt.NDArray[np.int64], rows: Rows) -> Bools:
        """Whether answers (m, draws) on points of these rows are right, and the clean ones too."""
        right = answers == self.true[rows][:, None]
        return np.asarray(right & self._clean[rows][:, : answers.shape[1]])

    def take_cost(self) -> tuple[float, float]:
        """Forward and backward passes since the last call, mean per audited image."""
        spent, self._spent = self._spent, _Spent()
        forwards = sum(int(one.forwards.sum()) for one in spent.victims) + spent.judged
        backwards = sum(int(one.backwards.sum()) for one in spent.victims)
        count = max(len(self), 1)
        return forwards / count, backwards / count

    # The row's attack ---------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps of the row's attack; those of the audit's own where it has none."""
        steps = getattr(self.evaluation.attack.plugin.params, "steps", None)
        return steps if isinstance(steps, int) else FALLBACK_STEPS

    def variant(self, **changes: object) -> Attack[Any] | None:
        """The row's attack with other parameters; None where it has no such parameters, or
        refuses these.
        """
        plugin = self.evaluation.attack.plugin
        kind = type(plugin)
        if not set(changes) <= set(kind.Params.model_fields):
            return None
        try:
            values = {**dict(plugin.params), **changes}
            other = kind(kind.Params.model_validate(values))
            other.check(self.evaluation.setting)
        except (ValidationError, BadInput, TypeError, ValueError):
            return None
        return other

    def run(
        self,
        attack: Attack[Any],
        rows: Rows,
        *,
        threat: ThreatModel | None = None,
        **victim: Any,
    ) -> Tensor:
        """Points of an attack on these rows; keywords as of `victim`."""
        points = self.images[rows].clone()
        unit = attack.unit(self.defended.stochastic) or max(len(rows), 1)
        for first in range(0, len(rows), unit):
            block = rows[first : first + unit]
            asked = self.victim(block, **victim)
            at = torch.as_tensor(block, device=self.execution.device)
            result = attack(asked, self.images[at], self.labels[at], threat or self.threat)
            points[first : first + unit] = result.points
        return points

    def own(
        self,
        rows: Rows,
        *,
        threat: ThreatModel | None = None,
        changes: dict[str, object] | None = None,
        steps: int | None = None,
        **victim: Any,
    ) -> Tensor:
        """Points of the row's attack with changed parameters, or of plain ascent on the margin
        where it has no such parameters, or is a suite that takes long.

        A suite knows gradients that plain ascent does not, such as BPDA; another function than the
        defense need not have them.
        """
        changed = {**(changes or {}), **({"steps": steps} if steps else {})}
        attack = self.variant(**changed) if changed else self.evaluation.attack.plugin
        if attack is not None and self._is_short(attack, of_defense="defended" not in victim):
            return self.run(attack, rows, threat=threat, **victim)
        return self.ascent(rows, margin, steps=steps or self.steps, threat=threat, **victim)

    def _is_short(self, attack: Attack[Any], of_defense: bool) -> bool:
        if "steps" in type(attack.params).model_fields:
            return True
        passes = attack.passes(self.record.outcomes.num_classes)
        return of_defense and passes is not None and passes.total <= MOST_PASSES

    def ascent(
        self,
        rows: Rows,
        loss: Loss,
        *,
        steps: int,
        threat: ThreatModel | None = None,
        targets: Tensor | None = None,
        **victim: Any,
    ) -> Tensor:
        """Points of plain projected gradient ascent on a loss, from the images."""
        asked, at = self.victim(rows, **victim), torch.as_tensor(rows, device=self.images.device)
        images, ball = self.images[at], threat or self.threat
        objective = asked.objective(
            self.labels[at],
            loss,
            restart=_RESTART,
            targets=None if targets is None else targets[at],
            any_wrong=targets is not None,
        )
        size = min(2.5 / steps, 1.0) * ball.eps
        done = ascend(objective, images, images, ball, steps=steps, size=size)
        return done.points if asked.fixed else done.last

    # Comparing ----------------------------------------------------------------------------------

    def wins(self, a: Floats, b: Floats) -> Bools:
        """Where shares of right draws `a` mean a broken image and `b` do not, beyond chance."""
        drop = DECISIVE_DROP if self.defended.stochastic else 0.0
        return np.asarray((a <= 0.5) & (b > 0.5) & (b - a >= drop))

    def offer(self, check: str, points: Tensor, rows: Rows) -> Floats:
        """Judge points; those that break what was left join the extra points. Returns their shares
        of right draws (m,).
        """
        answers = self._answers(points, rows)
        share: Floats = self.right(answers, rows).mean(1)
        for place in np.flatnonzero(self.wins(share, self.share[rows])):
            row = int(rows[place])
            if share[place] < self._best[row]:
                self._best[row] = share[place]
                self._extra[row] = (answers[place], check)
        return share

    def compare(self, check: str, search: Search, *, most: int | None = None) -> Comparison:
        """Run a search on the images that the row's attack left, and, where it breaks enough of
        them, on those that the row's attack broke.

        Args:
            check: id, for the extra points.
            search: what to run.
            most: on how many images of either kind; all by default.
        """
        left, broken = self.sample(self.left, most), self.sample(self.broken, most)
        if not len(left):
            return Comparison(left, 0, 0, len(self), complete=False)
        won = left[self.wins(self.offer(check, search(left), left), self.share[left])]
        # As many as there are in the whole record beside so many that were left.
        others = round(len(left) * self._broken_by_left)
        n = len(left) + others
        alone = Comparison(won, len(won), 0, n, complete=not others)
        if not alone.beats or not len(broken):
            return alone
        broken = self.sample(self.broken, min(len(broken), max(others, 1)))
        share = self.offer(check, search(broken), broken)
        lost = int(self.wins(self.share[broken], share).sum())
        only_row = math.ceil(lost * others / len(broken))
        return Comparison(won, len(won), only_row, n, complete=True)

    def sample(self, rows: Rows, most: int | None) -> Rows:
        """At most so many of these rows, spread evenly over them."""
        if most is None or len(rows) <= most:
            return rows
        return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]

    def together(self) -> Comparison:
        """All that was found so far beside the row's attack: each image under what broke it."""
        rows = np.array(sorted(self._extra), dtype=np.int64)
        others = round(len(self.left) * self._broken_by_left)
        return Comparison(rows, len(rows), 0, len(self.left) + others, complete=True)

    def extra(self) -> list[ExtraPoints]:
        """What broke images that the row's attack had left, as one attack."""
        if not self._extra:
            return []
        rows = sorted(self._extra, key=lambda row: self.positions[row])
        answers = np.stack([self._extra[row][0] for row in rows])
        by = [self._extra[row][1] for row in rows]
        k = self.record.outcomes.num_classes
        return [ExtraPoints.of(AUDIT, k, self.ids[np.array(rows)], answers, by)]

    # The base -----------------------------------------------------------------------------------

    @cached_property
    def base(self) -> tuple[Tensor, Bools] | None:
        """The points of the row's attack on the base, and which images they break there; None
        where the row has no base.
        """
        evaluation = self.evaluation.base()
        if evaluation is None:
            return None
        device = self.execution.device
        defended = build(evaluation, device)
        rows = np.arange(len(self))
        with frozen(defended):
            points = self.own(
                rows,
                defended=defended,
                gradient=evaluation.gradient,
                randomness=evaluation.randomness,
            )
            answers = judge(defended, points, self.ids, evaluation, self.execution).numpy()
        return points, np.asarray((answers == self.true[:, None]).mean(1) <= 0.5)


def chosen_images(record: Record, most: int) -> Rows:
    """Places of at most so many correctly classified images, as many of each class as can be.

    Where few of them are ones that the row's attack left, and the record has more of those, up to
    `_LEAST_LEFT` of those come first: the others cannot show what the attack missed.
    """
    outcomes = record.outcomes
    right = np.flatnonzero(outcomes.correct("clean").mean(1) > 0.5)
    left = outcomes.correct("adversarial").mean(1) > 0.5
    labels = outcomes.true_labels()
    chosen = _spread(right, labels, most)
    if left[chosen].sum() < min(_LEAST_LEFT, most):
        first = _spread(right[left[right]], labels, min(_LEAST_LEFT, most))
        others = _spread(np.setdiff1d(right, first), labels, most - len(first))
        chosen = np.concatenate([first, others])
    return np.sort(chosen)


_LEAST_LEFT = 16


def _spread(places: Rows, labels: Rows, most: int) -> Rows:
    """At most so many of these places: one of each class in turn, in evaluation order."""
    own = labels[places]
    rank = np.zeros(len(places), dtype=np.int64)
    for label in np.unique(own):
        members = np.flatnonzero(own == label)
        rank[members] = np.arange(len(members))
    return places[np.lexsort((places, rank))[:most]]
