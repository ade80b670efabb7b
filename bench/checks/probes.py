"""Looks at the function around the points that an attack left, and decides where it must.

Three questions are asked of a few images that survived:

- Slopes: is the gradient that of the function? (`bench.checks.slopes`)
- Margin steps: does a short search on another loss break what is left?
- Decision, where something is suspicious: do searches that need no gradient break it?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.randomness import RandomnessModel
from bench.threat import ThreatModel
from bench.victim import Victim


class MakeVictim(Protocol):
    """A victim of the defense under check; `randomness` and `gradient` as in `Victim`."""

    def __call__(
        self, ids: npt.NDArray[np.int64], randomness: RandomnessModel, gradient: str
    ) -> Victim: ...


@dataclass(frozen=True)
class ProbeSetting:
    """What a row was attacked with, and what the probe may spend.

    Attributes:
        threat: the threat model.
        randomness: the row's own randomness model; without meaning for a deterministic defense.
        gradient: the row's own gradient.
        declared: whether that gradient is declared to be of another function (bpda, transfers), so
            that its slopes prove nothing and are not measured.
        rounding: relative rounding of the logits: that of the coarsest numbers among the weights.
        suspicious: whether something else already calls for the decision (gradients of zero in the
            attack, a loop in the forward pass).
        enough: broken images after which the decision stops.
        forwards: forward passes an image that the decision may spend, a draw.
    """

    threat: ThreatModel
    randomness: RandomnessModel
    gradient: str = "full"
    declared: bool = False
    rounding: float = float(torch.finfo(torch.float32).eps)
    suspicious: bool = False
    enough: int = 7
    forwards: int = 2500


@dataclass(frozen=True)
class ProbeResult:
    """Facts by probed image; m images in the order in which they were given.

    Counts of several shards are joined along the images and judged together by
    `bench.checks.slopes.judge`.

    Attributes:
        votes: directions and step lengths whose slope could be compared, int64 (m,).
        agreeing: those of them whose sign is the gradient's, int64 (m,).
        ratio: median of |slope| over the gradient's slope, (m,); NaN where there was no vote.
        flat: whether the gradient is zero where the function has a slope, bool (m,).
        saturated: whether the attack's loss could not see the way: its gradient is zero, logits
            are infinite, or the two best logits are tied; bool (m,).
        decided: whether the decision was run.
        points: what was found, inside ball and box, else the attack's point; (m, C, H, W).
        by: which search found it, "" where none did: `margin`, `smoothed`, `square`, `random`.
        forwards, backwards: passes spent, int64 (m,).
    """

    votes: Tensor
    agreeing: Tensor
    ratio: Tensor
    flat: Tensor
    saturated: Tensor
    decided: bool
    points: Tensor
    by: tuple[str, ...]
    forwards: Tensor
    backwards: Tensor


def quota(shard: int, total: int) -> int:
    """How many images of a shard of `shard` images are probed, of `total` in the row: 16 over the
    row, at most a sixth of the shard.
    """
    return min(-(-16 * shard // total), shard // 6)


def probe(
    make_victim: MakeVictim,
    ids: npt.NDArray[np.int64],
    images: Tensor,
    labels: Tensor,
    points: Tensor,
    setting: ProbeSetting,
) -> ProbeResult:
    """Probe images that an attack left; the caller chooses them, `quota` of a shard.

    Args:
        make_victim: makes victims of the defense.
        ids: ids of the images, (m,), m >= 1.
        images: the originals, (m, C, H, W).
        labels: true labels, int64 (m,).
        points: where the attack ended, (m, C, H, W).
        setting: see there.
    """
    raise NotImplementedError
