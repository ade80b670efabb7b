"""Workers that reach no folder of ours: what they read and write goes through messages.

A worker asks, the driver answers: a message is one line of JSON, and bytes behind it. The driver
does to its folder what the worker asks for (`bench.execution.driver`), so records are written by
the driver alone.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.engine.execution import read_execution
from bench.engine.plan import plan_all
from bench.engine.run import run_evaluations
from bench.errors import BadInput, one_line
from bench.execution.job import Job
from bench.results.record import Failure, Record
from bench.results.store import Store, to_json
from bench.storage.place import Held, Place

Ask = Callable[[bytes], bytes]
"""Sends a message to the driver and returns its answer."""


def message(*words: object, data: bytes = b"") -> bytes:
    """Words that JSON knows, and bytes."""
    return json.dumps(words).encode() + b"\n" + data


def read_message(text: bytes) -> tuple[list[Any], bytes]:
    """The words and the bytes of a message."""
    head, _, data = text.partition(b"\n")
    words = json.loads(head)
    if type(words) is not list:
        raise ValueError(f"{head[:80]!r} is no message")
    return words, data


class RemotePlace(Place):
    """A folder of the driver's.

    Args:
        ask: reaches the driver.
        folder: the evaluation, and a folder of its unfinished work.
    """

    def __init__(self, ask: Ask, folder: Path) -> None:
        super().__init__(folder)
        self._ask = ask

    def within(self, name: str) -> RemotePlace:
        return RemotePlace(self._ask, self.folder / name)

    def read(self, name: str) -> bytes:
        (there,), data = self._say("read", name)
        if not there:
            raise FileNotFoundError(name)
        return data

    def holds(self, name: str) -> bool:
        (there,), _ = self._say("holds", name)
        return bool(there)

    def write(self, name: str, data: bytes) -> None:
        self._say("write", name, data=data)

    @contextmanager
    def claim(self, name: str) -> Iterator[Held | None]:
        (ours,), _ = self._say("claim", name)
        if not ours:
            yield None
            return
        try:
            yield _RemoteClaim(self, name)
        finally:
            self._say("release", name)

    def _say(self, word: str, name: str, data: bytes = b"") -> tuple[list[Any], bytes]:
        return read_message(self._ask(message(word, self.folder.as_posix(), name, data=data)))


@dataclass(frozen=True)
class _RemoteClaim:
    place: RemotePlace
    name: str

    def held(self) -> bool:
        (ours,), _ = self.place._say("held", self.name)
        return bool(ours)


class RemoteStore(Store):
    """The driver's folder of records.

    Args:
        ask: reaches the driver.
        scratch: a folder of this machine's; only its name is used.
    """

    def __init__(self, ask: Ask, scratch: Path) -> None:
        super().__init__(scratch)
        self._ask = ask

    def find(self, evaluation: str) -> Record | None:
        (there,), data = self._say("find", evaluation)
        return Record.model_validate_json(data, strict=True) if there else None

    def read(self, name: str) -> bytes:
        (there,), data = self._say("file", name)
        if not there:
            raise FileNotFoundError(name)
        return data

    def save(self, record: Record) -> Path:
        self._say("record", data=to_json(record))
        return self.folder / f"{record.stem}.json"

    def save_failure(self, failure: Failure) -> Path:
        (name,), _ = self._say("failure", data=to_json(failure))
        return self.folder / str(name)

    def write(self, name: str, data: bytes, evaluation: str) -> Path:
        self._say("points", name, evaluation, data=data)
        return self.folder / name

    def place(self, evaluation: str, name: str) -> Place:
        return RemotePlace(self._ask, Path(evaluation) / name)

    def begin(self, evaluation: str) -> bool:
        (first,), _ = self._say("begin", evaluation)
        return bool(first)

    def clear(self, evaluation: str, *, shards: bool = True) -> None:
        self._say("clear", evaluation, shards)

    def _say(self, *words: object, data: bytes = b"") -> tuple[list[Any], bytes]:
        return read_message(self._ask(message(*words, data=data)))


def take_part(job: Job, ask: Ask) -> None:
    """Work on a job of a driver's until all of it is done.

    Raises:
        BadInput: where this machine cannot plan the job, or plans another one, since data, weights
            or code differ.
    """
    evaluations = plan_all(job.requests)
    if tuple(one.id for one in evaluations) != job.ids:
        raise BadInput("data, weights or code of this machine are not those of the driver")
    execution = read_execution(job.device, job.batch_size, compile=job.compile)
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        for result in run_evaluations(
            evaluations, RemoteStore(ask, folder), execution, shared=True
        ):
            if result.rejected:
                ask(message("rejected", result.evaluation.id, str(result.rejected)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def converse(job: Job, ask: Ask) -> bytes:
    """Take part; returns the worker's last message, which says how it ended."""
    try:
        take_part(job, ask)
    except BaseException as error:
        return message("failed", one_line(error))
    return message("end")
