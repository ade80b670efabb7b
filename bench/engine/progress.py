"""Progress on stderr, or in a notebook: images, robust accuracy so far, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from bench.engine.evaluation import Evaluation
from bench.results.agenda import Item
from bench.results.durations import duration

LOG_SECONDS = 30.0
_BAR, _BESIDE = 16, 56
"""Columns of a bar, and of all that stands beside a name."""


class _Live:
    """Bars that are shown inside a `with` block."""

    _bars: Progress

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()


class _Bars(Progress):
    """A bar for each of what runs, below a line in words."""

    headline = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.headline:
            yield Text(self.headline, style="bold", no_wrap=True)
        yield from super().get_renderables()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules


class _Line:
    """A line in a notebook that is written over, and empty in the end."""

    def __init__(self) -> None:
        # Where there is a kernel, there is IPython.
        from IPython.display import display  # type: ignore[import-not-found]

        self._shown = display({"text/plain": ""}, raw=True, display_id=True)

    def __call__(self, text: str) -> None:
        self._shown.update({"text/plain": text}, raw=True)


class Reporter(_Live):
    """A live bar on a terminal, a line that changes in a notebook; elsewhere a line at each tenth
    of an evaluation or every half minute. Of several evaluations also how many are done, and the
    rest of the time.

    Args:
        items: what is to be computed, by id.
    """

    _bars: _Bars

    def __init__(self, items: Mapping[str, Item] = MappingProxyType({})) -> None:
        self._items = items
        self._ended: dict[str, bool] = {}
        self._seen = self._told = time.monotonic()
        # Seconds in which some evaluation ran: what is built before says nothing of the others.
        self._running = 0.0
        self._live = sys.stderr.isatty()
        self._line = _Line() if in_notebook() else None
        self._bars = _Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=_BAR),
            MofNCompleteColumn(),
            TextColumn("robust {task.fields[robust]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._right: dict[str, float] = {}
        self._fresh: dict[str, tuple[int, float]] = {}
        self._logged: dict[str, tuple[int, float]] = {}
        self._show_overall()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._line:
            self._line("")

    def ended(self, evaluation: str, failed: bool) -> None:
        """Take note that an evaluation has ended, whether there is a record or not."""
        if evaluation not in self._items:
            return
        self._tick()
        self._ended[evaluation] = failed or self._ended.get(evaluation, False)
        if evaluation in self._tasks:
            self._bars.update(self._tasks[evaluation], visible=False)
        self._show_overall()

    def _tick(self) -> None:
        now = time.monotonic()
        if any(name not in self._ended for name in self._tasks):
            self._running += now - self._seen
        self._seen = now

    def _show_overall(self) -> None:
        if len(self._items) < 2:
            return
        text, now = self._overall(), time.monotonic()
        self._bars.headline = text
        if not self._live and not self._line and now - self._told >= LOG_SECONDS:
            self._told = now
            print(text, file=sys.stderr, flush=True)

    def _overall(self) -> str:
        """How many evaluations are done, and about how long the others take."""
        parts = [f"{len(self._ended)} of {len(self._items)} evaluations"]
        failed = sum(self._ended.values())
        if failed:
            parts.append(f"{failed} failed")
        done = sum(item.passes * self._share(name, item) for name, item in self._items.items())
        if done and self._running:
            rest = sum(item.passes for item in self._items.values()) - done
            parts.append(f"about {duration(self._running / done * rest)} left")
        return ", ".join(parts)

    def _share(self, name: str, item: Item) -> float:
        return 1.0 if name in self._ended else self._done.get(name, 0) / item.images

    def __call__(self, evaluation: Evaluation, images: int, total: int, right: float) -> None:
        """Take note that an evaluation began (no images), or of a finished shard and the share of
        it still right.
        """
        self._tick()
        if evaluation.id not in self._tasks:
            self._start(evaluation, total)
        self._done[evaluation.id] += images
        self._right[evaluation.id] += right * images
        count = self._done[evaluation.id]
        if not images:
            # Shards that were on disk cost no time and must not enter the estimate.
            self._fresh.setdefault(evaluation.id, (count, time.monotonic()))
            return
        robust = f"{100 * self._right[evaluation.id] / count:.1f} %"
        self._bars.update(self._tasks[evaluation.id], completed=count, robust=robust)
        if count == total:
            self.ended(evaluation.id, failed=False)
        else:
            self._show_overall()
        text = f"{evaluation}: {count}/{total} images, robust {robust}"
        if self._line:
            self._line(f"{self._overall()}; {text}" if len(self._items) > 1 else text)
        elif not self._live and self._is_reported(evaluation, count, total):
            left = self._time_left(evaluation, count, total)
            print(f"{text}, ETA {left}", file=sys.stderr, flush=True)

    def _time_left(self, evaluation: Evaluation, count: int, total: int) -> str:
        done_before, since = self._fresh.get(evaluation.id, (count, 0.0))
        if count <= done_before:
            return "unknown"
        return f"{(time.monotonic() - since) / (count - done_before) * (total - count):.0f} s"

    def _start(self, evaluation: Evaluation, total: int) -> None:
        self._done[evaluation.id], self._right[evaluation.id] = 0, 0.0
        self._logged[evaluation.id] = (0, time.monotonic())
        name = _shortened(str(evaluation), max(20, self._bars.console.width - _BESIDE))
        self._tasks[evaluation.id] = self._bars.add_task(name, total=total, robust="...")

    def _is_reported(self, evaluation: Evaluation, count: int, total: int) -> bool:
        last, when = self._logged[evaluation.id]
        now = time.monotonic()
        if count < total and 10 * (count - last) < total and now - when < LOG_SECONDS:
            return False
        self._logged[evaluation.id] = (count, now)
        return True


def _shortened(text: str, room: int) -> str:
    """So many characters: the defense begins a name, the attack ends it."""
    before = (room - 1) // 2
    return text if len(text) <= room else f"{text[:before]}…{text[before + 1 - room :]}"


class Steps(_Live):
    """Steps of something long that is no evaluation: a live bar on a terminal, elsewhere a line
    every half minute.

    Args:
        what: a few words.
        total, done: how many steps there are, and how many were done before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._found = what, total, done
        self._began = self._logged = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bars.add_task(what, total=total, completed=done, note="")

    def __call__(self, done: int, note: str = "") -> None:
        """Take note that so many steps are done; `note` says how it goes."""
        self._bars.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if self._bars.disable and done > self._found and now - self._logged >= LOG_SECONDS:
            self._logged = now
            left = (now - self._began) / (done - self._found) * (self._total - done)
            print(
                f"{self._what}: {done}/{self._total}{note and f', {note}'}, ETA {left:.0f} s",
                file=sys.stderr,
                flush=True,
            )
