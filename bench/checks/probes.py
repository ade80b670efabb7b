"""Looks at the function around the points that an attack left, and decides where it must.

Three questions are asked of a few images that the attack did not break:

- slopes: is the gradient that of the function? (`bench.checks.slopes`)
- margin steps: do a few steps on the margin break what the attack's own loss could not, or a few
  along the gradient of the networks inside the defense?
- the decision, only where something is suspicious: do other searches break the images, most of them
  without any gradient?

A point that was found is a fact, whatever made one look for it: it joins the worst case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.checks import slopes
from bench.checks.slopes import Slopes
from bench.losses import SUCCESS_SLACK, margin
from bench.randomness import Query, RandomnessModel
from bench.searches import (
    SearchResult,
    inner_steps,
    margin_steps,
    random_points,
    smoothed,
    square,
)
from bench.threat import ThreatModel
from bench.victim import Victim, predict

MOST_PROBED = 16
"""Images of a row that are probed."""
ENOUGH = 7
"""Broken images after which the decision stops: as many as one attack must break beyond another."""
SOME, MOST_SEARCHED = 2, 48
"""Where so many images are broken, and not yet enough, so many more at most are searched."""
CHEAP = 8.0
"""Network passes a prediction up to which the decision's searches have their full length."""

_FEW_STEPS = 3
# A success that is random costs the draws that confirm it.
_FEW_INNER_STEPS, _FEWER_INNER_STEPS = 4, 2
_SCORING_DRAWS = 10
# Of the images that were probed.
_SUSPICIOUS_SHARE = 0.25
# Cross-entropy's gradient is a probability. Below this logarithm float32 holds none of its entries
# once the network has multiplied them: float32 ends at exp(-87).
_SATURATED = -73.0
_REPLAY = RandomnessModel("replay")


class MakeVictim(Protocol):
    """Makes a victim of the defense under check; `randomness` and `gradient` as in `Victim`."""

    def __call__(
        self, ids: npt.NDArray[np.int64], randomness: RandomnessModel, gradient: str
    ) -> Victim: ...


@dataclass(frozen=True)
class ProbeSetting:
    """What a row was attacked with, and what is known of it.

    Attributes:
        threat: the threat model.
        randomness: the row's own randomness model; without meaning for a deterministic defense.
        gradient: the row's own gradient.
        declared: whether that gradient is declared to be of another function (bpda, transfers), so
            that its slopes prove nothing and are not measured.
        transfers: whether the forward pass behind that gradient is another function as well, so
            that only searches without gradient are run.
        rounding: relative rounding of the coarsest numbers in the defense.
        suspicious: whether something else already calls for the decision: gradients of zero in the
            attack, a loop in the forward pass.
        prediction: passes through networks, a diffusion model among them, that one prediction
            takes; from `CHEAP` on the decision's searches are shorter.
    """

    threat: ThreatModel
    randomness: RandomnessModel
    gradient: str = "full"
    declared: bool = False
    transfers: bool = False
    rounding: float = float(torch.finfo(torch.float32).eps)
    suspicious: bool = False
    prediction: float = 1.0


@dataclass(frozen=True)
class Probed:
    """The images that are probed, m of them.

    Attributes:
        ids: image ids, int64 (m,).
        images: the originals, (m, C, H, W).
        labels: true labels, int64 (m,).
        points: where the attack ended, (m, C, H, W).
    """

    ids: npt.NDArray[np.int64]
    images: Tensor
    labels: Tensor
    points: Tensor


@dataclass(frozen=True)
class ProbeResult:
    """What was seen and found, by probed image; m images in the order in which they were given.

    Attributes:
        slopes: see `bench.checks.slopes`; all NaN where they were not measured. Those of several
            shards are `joined` and judged together.
        saturated: whether the attack's loss could not see the way: the gradient is zero, logits are
            infinite, the two best logits tie, or cross-entropy's gradient is below what float32
            holds; bool (m,).
        decided: whether the decision was run.
        points: what was found, inside ball and box, else the attack's point; (m, C, H, W).
        by: which search found it, "" where none did; see `SEARCHES`. Under fresh randomness it
            broke the image under the search's own draws, and the judge's draws decide.
        forwards, backwards: passes spent, int64 (m,).
    """

    slopes: Slopes
    saturated: Tensor
    decided: bool
    points: Tensor
    by: tuple[str, ...]
    forwards: Tensor
    backwards: Tensor


def together(results: Sequence[ProbeResult], order: npt.NDArray[np.int64]) -> ProbeResult:
    """The results of several groups of images as one, in this order of all their images."""

    def sorted_by(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))[torch.from_numpy(order).to(tensors[0].device)]

    by = [name for one in results for name in one.by]
    return ProbeResult(
        Slopes(
            sorted_by([one.slopes.sign for one in results]),
            sorted_by([one.slopes.ratio for one in results]),
            sorted_by([one.slopes.mismatch for one in results]),
        ),
        sorted_by([one.saturated for one in results]),
        any(one.decided for one in results),
        sorted_by([one.points for one in results]),
        tuple(by[at] for at in order),
        sorted_by([one.forwards for one in results]),
        sorted_by([one.backwards for one in results]),
    )


SEARCHES = (
    "few margin steps",
    "few steps on the network inside",
    "steps on the network inside",
    "margin steps",
    "random points",
    "square",
    "smoothed",
)
"""What `ProbeResult.by` names, in the order in which they run."""


def quota(n: int) -> int:
    """How many images of a row of n images are probed: `MOST_PROBED`, at most a sixth."""
    return min(MOST_PROBED, n // 6)


def probe(make_victim: MakeVictim, probed: Probed, setting: ProbeSetting) -> ProbeResult:
    """Probe images that an attack left; the caller chooses `quota` of them, one at least.

    Costs 36 forward and backward passes an image, a draw (under fresh randomness on average, as a
    point that seems to break its image is read on ten more draws), and up to 2,700 more where the
    decision is run; an image leaves at its first success, and the decision ends when `ENOUGH` are
    broken.
    """
    m, device = len(probed.ids), probed.images.device
    fixed = make_victim(probed.ids, _REPLAY, "full")
    own = make_victim(
        probed.ids, setting.randomness, "full" if setting.transfers else setting.gradient
    )
    measured = slopes.unmeasured(m)
    saturated = torch.zeros(m, dtype=torch.bool, device=device)
    if not setting.declared:
        measured, zero, logits = slopes.measure(
            fixed, probed.labels, probed.points, setting.threat, setting.rounding
        )
        saturated = zero | _saturated(logits, probed.labels)
    found = _Found(own, probed, setting.threat)
    if not setting.transfers:
        found.few_steps()
        few = _FEWER_INNER_STEPS if fixed.stochastic else _FEW_INNER_STEPS
        found.inner_steps(fixed, SEARCHES[1], few, most_calls=1)
    suspicious = (
        setting.suspicious
        or slopes.judge(measured).fired
        or float(saturated.float().mean()) >= _SUSPICIOUS_SHARE
    )
    if suspicious:
        share = min(1.0, CHEAP / max(setting.prediction, CHEAP))
        if not setting.transfers:
            found.inner_steps(fixed, SEARCHES[2], max(10, round(40 * share)), most_calls=4)
        found.decide(gradients=not setting.transfers, share=share)
    return ProbeResult(
        measured,
        saturated,
        suspicious,
        found.points,
        tuple(found.by),
        fixed.forwards + own.forwards,
        fixed.backwards + own.backwards,
    )


class _Found:
    """The points that searches found, and by which; what is found is searched no more."""

    def __init__(self, victim: Victim, probed: Probed, threat: ThreatModel) -> None:
        self.points = probed.points.clone()
        self.by = [""] * len(probed.ids)
        self._victim, self._probed, self._threat = victim, probed, threat

    def few_steps(self) -> None:
        """A few steps on the margin from where the attack ended."""
        rows = self._left()
        # Where no query repeats another, the last point costs a reading of its own, and a success
        # the draws that confirm it.
        steps = _FEW_STEPS if self._victim.fixed else _FEW_STEPS - 1
        start = self._probed.points[rows]
        search = partial(margin_steps, steps=steps, first=0.5, start=start)
        self._run(SEARCHES[0], search, rows)

    def inner_steps(self, fixed: Victim, name: str, steps: int, *, most_calls: int) -> None:
        """Steps along the gradient of the networks inside the defense; `fixed` reads one draw."""
        rows = self._left()
        if len(self.by) - len(rows) < ENOUGH and len(rows):
            self._run(name, partial(inner_steps, steps=steps, most_calls=most_calls), rows, fixed)

    def decide(self, gradients: bool, share: float = 1.0) -> None:
        """Searches of other kinds, the cheap ones first, until enough is broken.

        2,120 forward passes a draw for an image that none of them breaks; about 150 at the least
        `share` of that length.
        """

        def length(full: int, least: int) -> int:
            return max(least, round(full * share))

        searches: dict[str, _Search] = {
            "margin steps": partial(margin_steps, steps=length(40, 10)),
            "random points": partial(random_points, points=length(64, 16)),
            "square": partial(square, queries=length(1000, 50)),
            "smoothed": partial(smoothed, steps=length(30, 6), pairs=length(16, 6)),
        }
        if not gradients:
            del searches["margin steps"]
        for name, search in searches.items():
            rows = self._left()
            if len(self.by) - len(rows) >= ENOUGH or not len(rows):
                return
            self._run(name, search, rows)

    def _left(self) -> Tensor:
        left = torch.tensor([not by for by in self.by], device=self.points.device)
        return left.nonzero().squeeze(1)

    def _run(self, name: str, search: _Search, rows: Tensor, victim: Victim | None = None) -> None:
        probed, victim = self._probed, victim or self._victim
        result = search(victim, probed.images, probed.labels, rows, self._threat)
        # A success by less than rounding, or a tie, counts where the judge errs as well.
        claimed = result.margins >= 0
        if victim.deterministic:
            claimed |= result.success
        rows, points = rows[claimed], result.points[claimed]
        if not len(rows):
            return
        broken = self._broken(points, rows)
        self.points[rows[broken]] = points[broken]
        for row in rows[broken].tolist():
            self.by[row] = name

    def _broken(self, points: Tensor, rows: Tensor) -> Tensor:
        """Whether points break their images also where no gradient is asked for; where the victim
        draws freshly, on the mean of draws that no search has seen. bool (k,).
        """
        labels = self._probed.labels
        if not self._victim.deterministic:
            return self._victim.score(points, rows, labels, margin, _SCORING_DRAWS) > 0
        logits = self._victim.logits(points, rows, Query())[:, 0]
        inside = self._threat.contains(points, self._probed.images[rows])
        return (predict(logits) != labels[rows]) & inside


_Search = Callable[[Victim, Tensor, Tensor, Tensor, ThreatModel], SearchResult]


def _saturated(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether logits (m, K) tell a loss nothing, though the label is right; bool (m,)."""
    largest = logits.abs().amax(1)
    gap = margin(logits.double(), labels)
    # Infinite logits tie with whatever they are compared with.
    tied = gap.abs() <= SUCCESS_SLACK * largest
    return tied | (gap < _SATURATED)
