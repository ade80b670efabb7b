"""The checks of one shard: facts image by image, in arrays that are stored with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.checks.again import Asking, answer_again
from bench.checks.caches import growing, harmless
from bench.checks.fresh import FreshCopies
from bench.checks.state import State, moved, owner_of, state_of
from bench.defense import DefendedClassifier
from bench.losses import margin
from bench.randomness import judging
from bench.victim import Victim, predict

NOT_JUDGED = -2
"""Instead of the prediction on a point of the base: there is none."""

CAUSES, GAPS, MOVED, BASE, COPIED = (
    f"check/{name}" for name in ("causes", "gaps", "moved", "base", "copied")
)
FORWARDS, BACKWARDS = "check/forwards", "check/backwards"
"""Names of the arrays: n images each, `MOVED` a list of names, `COPIED` one number."""

_FEW = 8

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Attacked:
    """A shard after the attack.

    Attributes:
        ids: image ids, (n,).
        labels: true labels, int64 (n,).
        points: where the attack ended, (n, C, H, W).
        judged: the judge's logits there under its first draw, (n, K).
        before: the state of the defense before the attack.
    """

    ids: npt.NDArray[np.int64]
    labels: Tensor
    points: Tensor
    judged: Tensor
    before: State


@dataclass(frozen=True)
class ShardChecks:
    """What is checked of every shard.

    Attributes:
        deployed: the defense under attack.
        copies: copies of it that have seen no image.
        asking: how the judge asks.
        base_draws: draws under which points of the base are judged.
        base_points: the base's points for image ids, (n, C, H, W); None where there are none.
    """

    deployed: DefendedClassifier
    copies: FreshCopies
    asking: Asking
    base_draws: int
    base_points: Callable[[npt.NDArray[np.int64]], Tensor] | None

    def __call__(self, attacked: Attacked) -> Arrays:
        """The arrays named above."""
        n = len(attacked.ids)
        now = state_of(self.deployed)
        names = moved(attacked.before, now)
        forwards = np.zeros(n, dtype=np.int64)
        backwards = np.zeros(n, dtype=np.int64)
        causes, gaps = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.float32)
        if self.copies.make is not None:
            again = answer_again(
                self.copies.make,
                self.deployed,
                attacked.points,
                attacked.ids,
                attacked.judged,
                self.asking,
            )
            causes, gaps = again.causes.numpy(), again.gaps.numpy().astype(np.float32)
            forwards += again.passes.numpy()
            shared = [name for name in moved(self.copies.born, now) if self._is_shared(name)]
            if names or shared:
                names = self._that_matter(names, shared, attacked, forwards, backwards)
        return {
            CAUSES: causes,
            GAPS: gaps,
            MOVED: np.array(names, dtype=np.str_),
            BASE: self._judged_base(attacked.ids, forwards),
            COPIED: np.array([self.copies.make is not None], dtype=np.int64),
            FORWARDS: forwards,
            BACKWARDS: backwards,
        }

    def _is_shared(self, name: str) -> bool:
        """Whether copies share it, as they do what functions and classes hold: then no copy is one
        that has seen nothing.
        """
        own = {**dict(self.deployed.named_parameters()), **dict(self.deployed.named_buffers())}
        return name not in own and owner_of(self.deployed, name) is None

    def _that_matter(
        self,
        names: list[str],
        shared: list[str],
        attacked: Attacked,
        forwards: npt.NDArray[np.int64],
        backwards: npt.NDArray[np.int64],
    ) -> list[str]:
        """Without caches and notes that no one reads; what is shared, where it is no cache."""
        assert self.copies.make is not None
        few = min(_FEW, len(attacked.ids))
        victims: list[Victim] = []

        def run(defended: DefendedClassifier, other: bool) -> None:
            victim = Victim(
                defended,
                attacked.ids[:few],
                randomness=judging(1),
                root=self.asking.root,
                batch_size=self.asking.batch_size,
                device=self.asking.device,
            )
            victims.append(victim)
            images = attacked.points[:few].to(self.asking.device)
            images = 1 - images if other else images
            rows = torch.arange(few, device=self.asking.device)
            objective = victim.objective(attacked.labels[:few].to(self.asking.device), margin)
            for gradient in (False, True):
                objective(images, rows, 0, gradient)

        kept = harmless(self.copies.make, names, run) if names else frozenset()
        grown = growing(self.copies.make, shared, run) if shared else frozenset()
        for victim in victims:
            forwards[:few] += victim.forwards.cpu().numpy()
            backwards[:few] += victim.backwards.cpu().numpy()
        return sorted({name for name in names if name not in kept} | grown)

    def _judged_base(
        self, ids: npt.NDArray[np.int64], forwards: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Predictions (n, draws) of the deployed defense on the base's points."""
        if self.base_points is None:
            return np.full((len(ids), self.base_draws), NOT_JUDGED, dtype=np.int64)
        logits = self.asking.logits(
            self.deployed, self.base_points(ids), ids, draws=self.base_draws
        )
        forwards += self.base_draws
        return predict(logits).cpu().numpy()
