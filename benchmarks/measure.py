"""Two or more ways to do one thing, timed in turn in one process, and whether the ratio is wanted.

Each side runs once before the clock counts, so compilation and first use are told apart. Then the
sides take turns, so that what else the machine does falls on all of them alike. Medians count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch

OURS = "bench"
Run = Callable[[], Any]
"""Does the work once; what it returns is told beside the time, such as a robust accuracy."""


class Absent(Exception):
    """What a row needs is not here: a library, data, a device."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: a short name, for `--only`.
        title: what is done, in words.
        sides: makes the ways to do it, by name, ours first.
        wanted: by peer, how many times as fast as it we are to be.
        limit: the most that our side may take.
        unit: of what is measured: seconds, or MiB, which the side itself returns.
        rounds: how often each side is timed.
    """

    key: str
    title: str
    sides: Callable[[], Mapping[str, Run]]
    wanted: Mapping[str, float] = field(default_factory=dict)
    limit: float | None = None
    unit: str = "s"
    rounds: int = 5


@dataclass
class Measured:
    """A row as measured: by side, the values, that of the first run, and what it answered; `when`
    is the day and the commit, `machine` what it ran on.
    """

    key: str
    title: str
    unit: str
    values: dict[str, list[float]]
    first: dict[str, float]
    answers: dict[str, str]
    wanted: dict[str, float]
    limit: float | None = None
    absent: str = ""
    when: str = ""
    machine: dict[str, Any] = field(default_factory=dict)

    def median(self, side: str) -> float:
        return median(self.values[side])

    def ratio(self, peer: str) -> float:
        """How many times as much the peer takes."""
        return self.median(peer) / self.median(OURS)

    def verdict(self, peer: str) -> str:
        if peer == OURS:
            return "" if self.limit is None else _word(self.median(OURS) <= self.limit)
        wanted = self.wanted.get(peer)
        return "" if wanted is None else _word(self.ratio(peer) >= wanted)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _word(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def measure(row: Row, rounds: int | None = None) -> Measured:
    """Time the sides of a row in turn."""
    empty = Measured(row.key, row.title, row.unit, {}, {}, {}, dict(row.wanted), row.limit)
    try:
        sides = row.sides()
    except Absent as error:
        empty.absent = str(error)
        return empty
    for name, run in sides.items():
        empty.first[name], empty.answers[name] = _timed(run, row.unit)
        empty.values[name] = []
    for _ in range(rounds or row.rounds):
        for name, run in sides.items():
            empty.values[name].append(_timed(run, row.unit)[0])
    return empty


def _timed(run: Run, unit: str) -> tuple[float, str]:
    _synchronise()
    began = time.perf_counter()
    answer = run()
    _synchronise()
    seconds = time.perf_counter() - began
    if unit != "s":
        return float(answer), ""
    return seconds, answer if isinstance(answer, str) else ""


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def with_threads(number: int, run: Run) -> Run:
    """The same under so many torch threads."""

    def threaded() -> Any:
        with threads(number):
            return run()

    return threaded


@contextmanager
def threads(number: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
