"""The best point of each image among those that several searches found."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.losses import margin, misclassified
from bench.randomness import Query
from bench.results.outcomes import NO_STAGE, WRONG_BEFORE
from bench.victim import MERGING, Victim

DRAWS = 20
"""Fresh draws of their own on which points of different searches are compared."""

_TIE = 1e-6
"""What a point must be better by: less may be the rounding of another batch."""


class Best:
    """The worst case of several searches, image by image.

    An image is closed at its first success where the victim is `deterministic`. Elsewhere points
    are compared by how often they are wrong: under fresh randomness on draws that no search has
    seen, since what a search saw favours its chance hits.

    Args:
        victim: whose answers decide.
        images: all its images (n, C, H, W).
        labels: their true labels, int64 (n,).

    Attributes:
        points: the best point so far, the image itself before any was offered; (n, C, H, W).
        stages: number of the search that it came from, where it is wrong in more than half of its
            draws; else `NO_STAGE`; `WRONG_BEFORE` where it is the image itself. int64 (n,).
    """

    def __init__(self, victim: Victim, images: Tensor, labels: Tensor) -> None:
        self._victim, self._images, self._labels = victim, images, labels
        self.points = images.clone()
        self.stages = torch.full_like(labels, NO_STAGE)
        self._values = torch.full((len(images),), -torch.inf, device=images.device)
        self._open = torch.ones(len(images), dtype=torch.bool, device=images.device)

    @property
    def open(self) -> Tensor:
        """The images that are still searched, int64 (m,)."""
        return self._open.nonzero().squeeze(1)

    def offer(self, rows: Tensor, points: Tensor, number: int) -> None:
        """Keep those points (m, C, H, W) of images `rows` (m,) that are better, as found by the
        search of this number.
        """
        values, final = self._judge(rows, points)
        better = values > self._values[rows] + _TIE
        kept = rows[better]
        self.points[kept], self._values[kept] = points[better], values[better]
        clean = (points == self._images[rows]).flatten(1).all(1)
        found = torch.where(clean, WRONG_BEFORE, number)
        self.stages[kept] = torch.where(values > 0.5, found, NO_STAGE)[better]
        self._open[rows[final]] = False

    def _judge(self, rows: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """How often each point is wrong (m,), and which are a success that stays."""
        victim, labels = self._victim, self._labels
        if not victim.fixed:
            values = victim.score(points, rows, labels, wrong_share, DRAWS, purpose=MERGING)
            return values, torch.zeros_like(rows, dtype=torch.bool)
        logits = victim.logits(points, rows, Query())
        n, draws = logits.shape[:2]
        flat = wrong_share(logits.flatten(0, 1), labels[rows].repeat_interleave(draws))
        wrong = misclassified(logits[:, 0], labels[rows])
        return flat.reshape(n, draws).mean(1), wrong & victim.deterministic


def wrong_share(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where a draw is wrong, else at most 0 by a bounded margin, (n,).

    Its mean over draws orders points by how often they are wrong, and ties by how nearly.
    """
    gap = margin(logits, labels).nan_to_num(nan=0.0, posinf=1e30, neginf=-1e30).clamp(max=0)
    nearly = 1e-3 * gap / (1 + gap.abs())
    return torch.where(misclassified(logits, labels), torch.ones_like(gap), nearly)
