"""Modules whose true robust accuracy is known, as a catalogue that a package offers.

A catalogue is found by the entry-point group `bench.catalogues`, or given as `FILE.py@NAME`. The
engine names none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from bench.engine.setup import Setup
from bench.plugins.registry import Registry

HALVES = ("settled", "unseen")
"""On the first half thresholds may be settled, on the second they are reported."""


class Place(NamedTuple):
    """Which images, classifier and ball: as on the command line."""

    dataset: str
    classifier: str
    eps: float
    n: int


MNIST5K = Place("mnist5k", "zoo:mnist5k-cnn", 0.06, 64)
"""A ball in which steps anywhere break few images, so that a wrong gradient shows."""


@dataclass(frozen=True)
class Case:
    """A module, and what is to be known of it.

    Attributes:
        name: of its row.
        kind: kinds, not cases, are split into halves.
        hides: what it does and why nobody sees it.
        masked: whether it is meant to come out too robust; what counts is what comes out.
        make: builds it anew around the setup's classifier; images (n, C, H, W) in [0, 1] to logits.
            None takes the classifier itself, or `defense`.
        defense: spec of a registered defense in place of a module.
        place: images, classifier and ball.
        attack: the attack whose number is doubted.
        fitting: of a registered defense, the attack that sees through it.
        alone: whether the truth is that of an image by itself.
        draws: how often an image is asked for the truth.
    """

    name: str
    kind: str
    hides: str
    masked: bool
    make: Callable[[Setup], nn.Module] | None = None
    defense: str = ""
    place: Place = MNIST5K
    attack: str = "pgd"
    fitting: str = ""
    alone: bool = False
    draws: int = 1

    @property
    def published(self) -> bool:
        """Whether it needs images or weights that do not come with the suite."""
        return ":" in self.place.dataset


class Catalogue(ABC):
    """A collection of cases; subclasses write `cases`."""

    @abstractmethod
    def cases(self) -> tuple[Case, ...]:
        """All of them, names unique."""


CATALOGUES: Registry[Catalogue] = Registry(
    "catalogue", "bench.catalogues", "bench.studies.cases:Catalogue"
)


def halves(cases: Iterable[Case]) -> dict[str, str]:
    """The half of each kind: kinds in alphabetical order take turns, masked ones and controls each
    for themselves, so that nobody chooses.
    """
    kinds = {case.kind: case.masked for case in cases}
    turns = (sorted(kind for kind in kinds if kinds[kind] is masked) for masked in (True, False))
    return {kind: HALVES[place % 2] for own in turns for place, kind in enumerate(own)}
