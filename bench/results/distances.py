"""Minimal-norm attacks: how far from each image the nearest point lies that was found to break
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bench.results.arrays import Floats
from bench.results.estimate import Estimate
from bench.results.intervals import share

Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]

STEPS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Where a curve is shown, in eps of its row."""

_DIGITS = 7


class Distances(BaseModel):
    """Upper bounds of the distances to the nearest point that breaks an image, in the attack's own
    view and in the norm of the row. They need not lie in the row's ball.

    Attributes:
        values: one an image, in the order of the outcomes; 0 for an image that is wrong without
            an attack, None where no point was found.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[Distance | None, ...]

    @classmethod
    def of(cls, distances: Iterable[float], eps: float) -> Distances:
        """From numbers that may be infinite, to seven digits; none is rounded out of a ball of
        radius `eps`.
        """
        return cls(values=tuple(_rounded(float(one), eps) for one in distances))

    def array(self) -> Floats:
        """Float64 (n,), infinite where no point was found."""
        return np.array([math.inf if one is None else one for one in self.values])

    @property
    def median(self) -> float:
        """Over all images; infinite where none was found for half of them."""
        return float(np.sort(self.array())[len(self.values) // 2])

    @property
    def found(self) -> int:
        """For how many images a point was found."""
        return sum(one is not None for one in self.values)

    def robust_at(self, eps: float) -> Estimate:
        """Share of the images that nothing within eps was found to break."""
        return share((self.array() > eps).astype(np.float64))

    def curve(self, eps: Sequence[float]) -> list[Estimate]:
        """`robust_at` each eps."""
        return [self.robust_at(one) for one in eps]


def _rounded(distance: float, eps: float) -> float | None:
    if not math.isfinite(distance):
        return None
    short = float(f"{distance:.{_DIGITS}g}")
    return eps if distance <= eps < short else short
