"""Published accuracies as they are printed: digits, rounding, test set, and where they stand."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, floor, prod, sqrt
from pathlib import Path
from typing import TypeVar

from bench.plugins.create import DATASETS
from bench.plugins.registry import Alias
from bench.report.reference import Line, Reference, read_lines
from bench.spec import read_number

CLEAN = {
    "clean accuracy": "",
    "clean accuracy (all draws)": "all",
    "clean accuracy (mean of draws)": "mean",
}
ATTACKED = {
    "robust accuracy": "",
    "robust accuracy (all draws)": "all",
    "robust accuracy (majority)": "majority",
    "robust accuracy (mean of draws)": "mean",
}
"""Accuracies, and what they say of several draws of an image."""

SMALLEST = 100
"""Images that a test set of unknown size is taken to have, so that little is said of it."""

SUBSETS = (50, 64, 100, 128, 200, 250, 256, 500, 512, 1_000, 1_024, 2_000, 2_048, 5_000)
"""Sizes of the parts of a test set that papers attack."""

TELLING, ALMOST_NEVER = 4, 1e-3
"""So many different numbers of a table, all multiples of one share, tell how many images it rests
on, where chance makes them so less often than this.
"""

Key = TypeVar("Key", bound=Hashable)

_SLACK = 1e-9  # two printed decimals are not exact in binary
_SIZE_IN_NOTE = re.compile(
    r"\bn ?= ?([1-9][\d,]*)|\b(?:first|all) ([1-9][\d,]*)(?: test)? images", re.IGNORECASE
)
_DECIMALS = re.compile(r"[^.]*\.?(\d*).*")
_MEAN = re.compile(r"\bmeans?\b|\baverage|\bseeds\b|\bruns\b|±|\bstd\b", re.I)


@dataclass(frozen=True)
class TestSet:
    """What the registry knows of the data set that a name in print means.

    Attributes:
        sizes: how many test images it has; several where releases differ, empty where unknown.
        counts: test images of each class; empty where unknown.
        names: of the classes; empty where unknown.
    """

    sizes: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


@cache
def known_test_set(dataset: str) -> TestSet:
    """The registered data set of this name: case, hyphens and blanks do not count."""
    plain = _plain(dataset)
    for name in DATASETS.names():
        kind = DATASETS.get(name) if plain and _plain(name) == plain else None
        if kind and not isinstance(kind, Alias) and "test" in kind.splits:
            sizes = (kind.splits["test"], *kind.other_test_sizes)
            return TestSet(sizes, kind.test_counts, kind.class_names)
    return TestSet()


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass(frozen=True)
class Cell:
    """One accuracy in percent.

    Attributes:
        reference: what is said of it.
        digits: how many stand behind its point.
        places: `FILE:LINE` wherever it is written down.
    """

    reference: Reference
    digits: int
    places: tuple[str, ...]

    @property
    def value(self) -> float:
        return self.reference.value

    @property
    def unit(self) -> float:
        """One of the last printed digit."""
        return float(10.0**-self.digits)

    @property
    def printed(self) -> str:
        return f"{self.value:.{self.digits}f}"

    @property
    def attacked(self) -> bool:
        return self.reference.metric in ATTACKED

    @property
    def draws(self) -> str:
        """What it says of several draws: `all`, `mean`, `majority` or nothing."""
        return {**CLEAN, **ATTACKED}[self.reference.metric]

    @property
    def eps(self) -> float:
        """Radius, 0 where it is not stated."""
        number = read_number(self.reference.eps)
        return float(number) if self.reference.eps else 0.0  # type: ignore[arg-type]

    @property
    def stated_size(self) -> int | None:
        """How many images its note says it rests on."""
        found = _SIZE_IN_NOTE.search(self.reference.note)
        return int((found[1] or found[2]).replace(",", "")) if found else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many images it may rest on; empty where that is not known."""
        stated = self.stated_size
        return (stated,) if stated else known_test_set(self.reference.dataset).sizes

    @property
    def is_mean(self) -> bool:
        """Whether it is averaged, so that it need be no share of one set of images."""
        text = f"{self.reference.metric} {self.reference.protocol} {self.reference.note}"
        return bool(_MEAN.search(text))

    def is_share(self, count: int, size: int) -> bool:
        """Whether `count` of `size` images, rounded to the printed digits, is this value."""
        return abs(100 * count / size - self.value) <= self.unit / 2 + _SLACK

    def is_cut(self, count: int, size: int) -> bool:
        """Whether it is this share with the further digits cut off."""
        return -_SLACK <= 100 * count / size - self.value < self.unit - _SLACK

    def exceeds(self, other: Cell) -> bool:
        """Whether it is larger than another, whatever the rounding of both."""
        return self.value - other.value > (self.unit + other.unit) / 2 + _SLACK


def nearest_counts(cell: Cell, size: int) -> tuple[int, int]:
    """The counts of `size` images whose shares lie around the value."""
    exact = cell.value * size / 100
    return floor(exact + _SLACK), ceil(exact - _SLACK)


def fits(cell: Cell, size: int) -> bool:
    """Whether some count of this many images, rounded, is the value."""
    return any(cell.is_share(count, size) for count in nearest_counts(cell, size))


def case_of(cell: Cell) -> tuple[str, ...]:
    """Source, table, data set, architecture, defense."""
    row = cell.reference
    return row.source, row.table, row.dataset, row.architecture, row.defense


def ball_of(cell: Cell) -> tuple[str, str]:
    """Norm and radius as stated."""
    return cell.reference.norm, cell.reference.eps


def measured_alike(cell: Cell) -> tuple[str, ...]:
    """What cells have in common that should rest on the same images: a table on one data set; what
    it quotes of others stands apart.
    """
    row = cell.reference
    return row.source, row.table, row.dataset, str("secondary" in row.badges)


def grouped(cells: Iterable[Cell], key: Callable[[Cell], Key]) -> dict[Key, list[Cell]]:
    """Cells by a key, in order."""
    groups: dict[Key, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[key(cell)].append(cell)
    return groups


@dataclass(frozen=True)
class Size:
    """How many images a number rests on.

    Attributes:
        images: how many; `SMALLEST` where nothing tells.
        how: `stated` beside the number, told by the `digits` of its table, `all` of the test set,
            or `unknown`.
    """

    images: int
    how: str

    def told(self, points: float) -> str:
        """A difference in points as images; empty where their number is not known."""
        count = f"about {round(points * self.images / 100):,}"
        return {
            "stated": f", {count} of {self.images:,} images",
            "digits": f", {count} of {self.images:,} images (all numbers of the table are "
            f"multiples of 1/{self.images})",
            "all": f", {count} images if all {self.images:,} were used",
            "unknown": "",
        }[self.how]


class Sizes:
    """How many images each cell of some tables rests on."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        tables = grouped(cells, measured_alike)
        self._by_digits = {key: _resolution(table) for key, table in tables.items()}

    def of(self, cell: Cell) -> Size:
        """What is stated, what the digits of its table tell, or all that the data set has."""
        if cell.stated_size:
            return Size(cell.stated_size, "stated")
        if by_digits := self._by_digits.get(measured_alike(cell)):
            return Size(by_digits, "digits")
        return Size(cell.sizes[0], "all") if cell.sizes else Size(SMALLEST, "unknown")


def _resolution(cells: Sequence[Cell]) -> int | None:
    """The smallest usual subset of which all these numbers are counts, where chance does not make
    them so.
    """
    values = {cell.printed: cell for cell in cells if not cell.is_mean}.values()
    for size in SUBSETS:
        if all(fits(cell, size) for cell in values):
            chance = prod(min(1.0, (size + 1) * cell.unit / 100) for cell in values)
            return size if len(values) >= TELLING and chance < ALMOST_NEVER else None
    return None


def noise(one: Cell, other: Cell, size: int) -> float:
    """Points by which two shares of `size` images each differ by chance: two standard errors of
    the difference, were the images others. On the same images it is less.
    """
    shares = one.value / 100, other.value / 100
    return 200 * sqrt(sum(share * (1 - share) / size for share in shares))


def read_cells(places: Sequence[Path]) -> list[Cell]:
    """The accuracies of CSV files and folders of them, each once however often it is written down.

    Numbers that their source rounds or bounds, and those of attacks made without the defense, are
    left out: no order binds them. Raises `BadInput` like `read_lines`.
    """
    merged: dict[str, tuple[Line, list[str]]] = {}
    for line in _lines(places):
        row = line.reference
        judged = row.metric in CLEAN or row.metric in ATTACKED
        if not judged or {"approximate", "static-transfer"} & set(row.badges):
            continue
        key = row.model_dump_json(exclude={"note", "badges"})
        merged.setdefault(key, (line, []))[1].append(f"{line.file.name}:{line.number}")
    return [
        Cell(line.reference, len(_DECIMALS.sub(r"\1", line.printed)), tuple(where))
        for line, where in merged.values()
    ]


def _lines(places: Iterable[Path]) -> list[Line]:
    return [line for place in places for line in read_lines(place)]
