"""What each profile of the ensemble runs, in which order, and what a survivor of it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.attack import Passes
from bench.searches.population import passes as crossover_passes
from bench_attacks.ensemble.losses import LossAt, margin_at, scaled_at

Start = Literal["image", "ball", "corner", "mixed"]
"""Where an ascent starts: the image, a random point of its ball, or a random corner of it (in L2
and L1 a point on the sphere); mixed: a corner in a random half of the pixels, the best point so far
in the others.
"""


@dataclass(frozen=True)
class Ascents:
    """Gradient ascents on one loss.

    Attributes:
        name: name of the stage.
        loss: what each step raises.
        steps: steps a start.
        start: where it starts.
        starts: how many starts, one after the other.
        near: for images alone that are nearly broken (`NEAR`).
    """

    name: str
    loss: LossAt
    steps: int
    start: Start = "ball"
    starts: int = 1
    near: bool = False

    def passes(self, num_classes: int) -> Passes:
        """What a survivor costs."""
        del num_classes
        return ascent_passes(self.steps) * self.starts


@dataclass(frozen=True)
class Targets:
    """Gradient ascents on the gap to one wrong class after the other.

    Attributes:
        name: name of the stage.
        steps: steps a class.
        most: classes to aim at, at most K - 1.
        start: where each ascent starts.
    """

    name: str
    steps: int
    most: int
    start: Start = "ball"
    near: ClassVar[bool] = False

    def classes(self, num_classes: int) -> int:
        """How many classes it aims at."""
        return min(self.most, num_classes - 1)

    def candidates(self, num_classes: int) -> int:
        """Of how many classes the distance is estimated; 0 where it aims at all, whose order the
        logits give.
        """
        others = num_classes - 1
        return 0 if others <= self.most else min(others, CANDIDATES * self.most)

    def passes(self, num_classes: int) -> Passes:
        """What a survivor costs."""
        candidates = self.candidates(num_classes)
        order = Passes(1 + candidates, candidates)
        return order + ascent_passes(self.steps) * self.classes(num_classes)


@dataclass(frozen=True)
class Squares:
    """Random search with squares, which reads no gradient.

    Attributes:
        name: name of the stage.
        queries: points that are read.
        near: for images alone that are nearly broken (`NEAR`).
    """

    name: str
    queries: int
    near: bool = False

    def passes(self, num_classes: int) -> Passes:
        """What a survivor costs."""
        del num_classes
        return Passes(self.queries)


@dataclass(frozen=True)
class Crossings:
    """Ascents from points of a population that are crossed with each other.

    Attributes:
        name: name of the stage.
        population: points that are kept of each image.
        starts: so many times the population is started from corners.
        generations: how often it is crossed.
    """

    name: str
    population: int
    starts: int
    generations: int
    near: ClassVar[bool] = False

    def passes(self, num_classes: int) -> Passes:
        """What a survivor costs."""
        del num_classes
        return Passes(*crossover_passes(self.population, self.starts, self.generations))


Stage = Ascents | Targets | Squares | Crossings

NEAR = 0.2
"""An image is nearly broken where its best margin is at most this share of its clean one from 0;
under fresh draws where some of the draws that its point was compared on are wrong.
"""

CANDIDATES = 3
"""So many times the classes that are aimed at are compared by their estimated distance."""


def ascent_passes(steps: int) -> Passes:
    """One forward pass more than backward passes."""
    return Passes(steps + 1, steps)


def passes(stages: tuple[Stage, ...], num_classes: int = 10, near: bool = True) -> Passes:
    """What an image costs which none of the stages breaks, nearly broken or not."""
    each = (stage.passes(num_classes) for stage in stages if near or not stage.near)
    return sum(each, Passes(0))


Profile = Literal["fast", "standard", "strong"]

# Many short searches reach what fewer long ones miss: 20 steps do what 40 do. Where gradients alone
# fail, starts that keep half of the best point succeed more often than fresh ones. Targets and
# squares broke nothing more there; they are for many classes and for gradients that mislead. What
# breaks late comes near early, so that most images need no more than the first stages of `fast`.
_STEPS = 20
_STANDARD: tuple[Stage, ...] = (
    Ascents("margin", margin_at, _STEPS, "image"),
    Ascents("scaled", scaled_at, _STEPS, "corner", 6),
    Ascents("mixed", scaled_at, _STEPS, "mixed", 8),
    Ascents("mixed-near", scaled_at, _STEPS, "mixed", 10, near=True),
    Targets("targets", 10, 9, "corner"),
    Squares("square", 150),
)
STAGES: dict[Profile, tuple[Stage, ...]] = {
    "fast": (
        Ascents("margin", margin_at, _STEPS, "image"),
        Ascents("scaled", scaled_at, _STEPS, "corner", 4),
        Ascents("mixed", scaled_at, _STEPS, "mixed"),
        Squares("square", 60),
        Ascents("mixed-near", scaled_at, _STEPS, "mixed", 8, near=True),
        Squares("square-near", 150, near=True),
    ),
    "standard": _STANDARD,
    "strong": (
        *_STANDARD,
        Ascents("corners", margin_at, 60, "corner", 20),
        Crossings("crossover", 64, 2, 18),
    ),
}
