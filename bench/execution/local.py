"""Worker processes beside this one, on the same machine."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch

from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.engine.memory import MEMORY_VARIABLE, budget, free_bytes
from bench.engine.request import Request
from bench.engine.run import Result, run_evaluations, shards_for
from bench.engine.shards import Arrays, Shard, Workspace, complete
from bench.errors import BadInput, one_line
from bench.execution.copies import Copies, can_copy, ended
from bench.execution.job import Job
from bench.results.store import Store
from bench.storage.place import Place

PATIENCE_SECONDS = 4.0
"""A job that ends sooner gets no help from a new process, which needs about as long to begin."""
COPY_PATIENCE_SECONDS = 0.3
"""The same for a copy of this process, which begins at once."""
MOST_WORKERS = 1024
COMMAND = (sys.executable, "-m", "bench.execution.worker")
WORKERS_VARIABLE = "BENCH_WORKERS"
_MEMORY_SHARE = 0.8
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Team:
    """How many processes compute, and when the others join this one.

    Attributes:
        size: processes, this one among them; at most so many where `patience` is above 0.
        patience: seconds after which they join.
    """

    size: int
    patience: float = 0.0


def read_team(workers: int | None, device: torch.device) -> Team:
    """From what a user wrote; None is BENCH_WORKERS, else what cores or GPUs bear, once a job has
    turned out to be long.

    Raises:
        BadInput: where the number is none.
    """
    given = given_workers(workers)
    if given is None:
        ours = device.type == "cuda" and device.index is not None
        most = 1 if ours else torch.cuda.device_count() if device.type == "cuda" else cores()
        return Team(most, PATIENCE_SECONDS)
    return Team(given)


def given_workers(workers: int | None) -> int | None:
    """How many a user wants, by word or by BENCH_WORKERS; None where that is left open.

    Raises:
        BadInput: where the number is none.
    """
    given = os.environ.get(WORKERS_VARIABLE) if workers is None else str(workers)
    if given is None:
        return None
    if not given.isdecimal() or not 1 <= int(given) <= MOST_WORKERS:
        raise BadInput(f"workers is {given!r}: give 1 to {MOST_WORKERS}")
    return int(given)


def cores() -> int:
    """Cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, min(allowed or 1, int(quota) // int(period)))
    except (OSError, ValueError):
        return allowed or 1


def run_in_processes(
    evaluations: Sequence[Evaluation],
    requests: Sequence[Request] | None,
    store: Store,
    execution: Execution,
    team: Team,
    note: Callable[[str], None],
) -> Iterator[Result]:
    """Run evaluations in this process and in others; the records are those that one makes.

    Args:
        evaluations: as for `run_evaluations`.
        requests: what they were planned from, for the others; None where Python gave objects,
            which copies of this process alone can have.
        store, execution: as for `run_evaluations`.
        team: how many processes.
        note: called with what a user should know, one line each.
    """
    waiting = [one for one in evaluations if store.find(one.id) is None]
    size = min(team.size, sum(len(shards_for(one, execution)) for one in waiting))
    if size < 2:
        yield from run_evaluations(evaluations, store, execution)
        return
    threads = max(1, min(torch.get_num_threads(), cores() // size)) if requests is not None else 1
    with _threads(threads):
        helpers: _Helpers
        if can_copy(execution.device):
            helpers = _Copied(partial(_take_part, evaluations, store, execution), size - 1)
        elif requests is None:
            note("objects from Python are evaluated by one process here: name them by specs")
            yield from run_evaluations(evaluations, store, execution)
            return
        else:
            job = Job(
                requests=tuple(requests),
                out=store.folder,
                device=str(execution.device),
                batch_size=execution.batch_size,
                compile=execution.compile,
                weights=execution.weights,
                threads=threads,
            )
            helpers = _Started(job, size - 1)
        with _helped(helpers, min(team.patience, helpers.patience), note):
            yield from run_evaluations(evaluations, store, execution, shared=True)
    store.sweep(one.id for one in waiting)


def _take_part(evaluations: Sequence[Evaluation], store: Store, execution: Execution) -> None:
    for _ in run_evaluations(evaluations, store, replace(execution, progress=None), shared=True):
        pass


def several(
    n: int,
    compute: Callable[[int], bytes],
    device: torch.device,
    workers: int | None,
    note: Callable[[str], None],
) -> list[bytes]:
    """What `compute` makes of 0 to n - 1, in this process and in copies of it where there can be
    some.

    Args:
        n: how many.
        compute: makes one; what it raises in this process is raised.
        device: where it computes.
        workers: how many processes; None as for a run.
        note: called with what a user should know, one line each.
    """
    items = [(place, place + 1) for place in range(n)]

    def make(item: Shard) -> Arrays:
        return {"made": np.frombuffer(compute(item[0]), dtype=np.uint8)}

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        work = Workspace(Place(Path(folder)))

        def take_part() -> dict[Shard, Arrays] | None:
            return complete(work, items, make, lambda: False, lambda *_: None)

        team, made = read_team(workers, device), None
        with _threads(1):
            if min(team.size, n) > 1 and can_copy(device):
                helpers = _Copied(take_part, min(team.size, n) - 1)
                with _helped(helpers, min(team.patience, helpers.patience), note):
                    made = take_part()
        made = made or take_part() or {}
    return [made[item]["made"].tobytes() for item in items]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Helpers(ABC):
    """Processes that help this one.

    Args:
        most: how many there are to be, where memory bears them.

    Attributes:
        patience: how many seconds a job must last before they pay.
    """

    patience = PATIENCE_SECONDS

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._ended = False

    def start(self) -> None:
        """Start as many as memory bears; none after `end`."""
        with self._lock:
            number = 0 if self._ended else self._possible()
            if number:
                self._start(number)

    def end(self) -> list[str]:
        """End those that still work; returns what went wrong with any of them before."""
        with self._lock:
            self._ended = True
        return self._end()

    def _possible(self) -> int:
        # What this process took at most so far is what another one will take.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return min(self.most, int(_MEMORY_SHARE * free_bytes() / peak))

    @abstractmethod
    def _start(self, number: int) -> None: ...

    @abstractmethod
    def _end(self) -> list[str]: ...


class _Copied(_Helpers):
    """Copies of this process; see `bench.execution.copies`."""

    patience = COPY_PATIENCE_SECONDS

    def __init__(self, work: Callable[[], object], most: int) -> None:
        super().__init__(most)
        share = budget(torch.device("cpu")) // most

        def work_in_a_share() -> None:
            os.environ[MEMORY_VARIABLE] = str(max(1, share))
            work()

        self._copies = Copies(work_in_a_share)

    def _start(self, number: int) -> None:
        self._copies.start(number)

    def _end(self) -> list[str]:
        return self._copies.end()


class _Started(_Helpers):
    """New processes, which plan the job from its requests."""

    def __init__(self, job: Job, most: int) -> None:
        super().__init__(most)
        self.job = job
        self._running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        self._problem = ""

    def _possible(self) -> int:
        return self.most if torch.device(self.job.device).type == "cuda" else super()._possible()

    def _start(self, number: int) -> None:
        try:
            for place in range(1, number + 1):
                self._running.append(self._one(place, number))
        except OSError as error:
            self._problem = f"no further worker process can be started ({one_line(error)})"

    def _end(self) -> list[str]:
        return [told for told in (self._problem, *map(_told, self._running)) if told]

    def _one(self, place: int, number: int) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        device = torch.device(self.job.device)
        if device.type == "cuda":
            device = torch.device("cuda", place % torch.cuda.device_count())
        job = self.job.model_copy(update={"device": str(device)})
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(job.threads),
            MEMORY_VARIABLE: str(max(1, budget(device) // number)),
        }
        # Not a pipe: nobody reads it before the end.
        errors = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            # An interrupt on the terminal is for this process; the others end with it.
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job.to_json().encode() + b"\n")
            process.stdin.flush()
        return process, errors


def _told(running: tuple[subprocess.Popen[bytes], IO[bytes]]) -> str:
    """End a process; returns one line where it had ended in another way than by its work."""
    process, errors = running
    code = process.poll()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()
    errors.seek(0)
    said = errors.read().decode(errors="replace")
    errors.close()
    return ended(code, said) if code else ""


@contextmanager
def _helped(helpers: _Helpers, patience: float, note: Callable[[str], None]) -> Iterator[None]:
    """Have these helpers while the block runs, from the moment at which patience ends."""
    timer = threading.Timer(patience, helpers.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for told in helpers.end():
            note(told)
