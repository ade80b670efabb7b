"""A number with its 95 % interval."""

from __future__ import annotations

import math

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Estimate:
    """A share, a difference, a ratio or a mean with its 95 % interval.

    `high` is infinite where nothing bounds a ratio; both ends are NaN where there is no interval,
    as over a single build, and the value too where there was no image. Of a share an interval from
    0 to 1 says as little.

    Attributes:
        value: the point estimate; a share lies in [0, 1].
        low, high: the ends of the interval, `low <= high`.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"an interval from {self.low} to {self.high} is empty")

    def __str__(self) -> str:
        """In percent: `98.2 [97.2, 98.9]`."""
        return self.scaled(100, 1)

    def scaled(self, factor: float, digits: int) -> str:
        """`value [low, high]`, each times `factor`, with `digits` decimals; the value alone where
        there is no interval.
        """
        value, low, high = (_decimal(factor * x, digits) for x in (self.value, self.low, self.high))
        if math.isnan(self.low):
            return value
        return f"{value} [{low}, {high if not math.isinf(self.high) else 'unbounded'}]"


def _decimal(number: float, digits: int) -> str:
    # Adding 0 turns a rounded -0.0 into 0.0.
    rounded = round(number, digits) + 0.0 if math.isfinite(number) else number
    return f"{rounded:.{digits}f}"
