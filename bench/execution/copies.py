"""Copies of this process: they begin at once, and know all that it knows.

A process whose threads compute cannot be copied, since the copy would keep their locks for ever.
So one copy is made before anything runs. It lies idle, and makes the others when they are wanted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import IO, NoReturn

import torch

from bench.errors import one_line

LEFT = 3
"""Exit code of a worker whose parent is gone."""

_open_orders: set[int] = set()


def can_copy(device: torch.device) -> bool:
    """Whether copies of this process can compute: on CPUs with one thread each, where this process
    has no GPU, whose state no copy can share.
    """
    return (
        sys.platform == "linux"
        and device.type == "cpu"
        and torch.get_num_threads() == 1
        and not torch.cuda.device_count()
    )


class Copies:
    """Copies of this process that do some work, and end with it.

    Made while nothing else computes in this process; what it learns afterwards they do not know.

    Args:
        work: what each of them does, once.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        read, self._order = os.pipe()
        self._report: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._first = _fork()
        if not self._first:
            for order in {*_open_orders, self._order}:
                os.close(order)
            _wait_for_order(read, self._report, work)
        os.close(read)
        _open_orders.add(self._order)

    def start(self, number: int) -> None:
        """Make so many; to be called once at most."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._order, number.to_bytes(4))

    def end(self) -> list[str]:
        """End those that still work; returns a line for each that ended otherwise before."""
        _open_orders.discard(self._order)
        os.close(self._order)
        code = os.waitstatus_to_exitcode(os.waitpid(self._first, 0)[1])
        self._report.seek(0)
        lines = self._report.read().decode(errors="replace").splitlines()
        self._report.close()
        return [*lines, *([ended(code, "")] if code else [])]


def ended(code: int, said: str) -> str:
    """One line on a worker that ended before its work did.

    Args:
        code: its exit code, negative for a signal.
        said: what it wrote.
    """
    lines = said.strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    return f"a worker process ended with exit code {code} ({last}): the others did its work"


def end_with(descriptor: int) -> None:
    """End this process when the other end of a pipe closes.

    What is unfinished is dropped, as after a kill: the claims end with the process.
    """

    def watch() -> None:
        while os.read(descriptor, 1024):
            pass
        os._exit(LEFT)

    threading.Thread(target=watch, daemon=True).start()


def _fork() -> int:
    with warnings.catch_warnings():
        # Of other threads: none of them computes.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _wait_for_order(read: int, report: IO[bytes], work: Callable[[], None]) -> NoReturn:
    """The life of the first copy: idle, then the parent of the others."""
    # An interrupt on the terminal is for the process that was copied; the others end with it.
    os.setsid()
    _speak_to(os.open(os.devnull, os.O_RDWR))
    number = int.from_bytes(os.read(read, 4))
    running: dict[int, IO[bytes]] = {}
    for _ in range(number):
        said = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            process = _fork()
        except OSError as error:
            report.write(f"no further worker process can be made ({one_line(error)})\n".encode())
            break
        if not process:
            _help(read, said, work)
        running[process] = said
    report.flush()
    while running:
        process, status = os.wait()
        code, file = os.waitstatus_to_exitcode(status), running.pop(process)
        if code not in (0, LEFT):
            file.seek(0)
            report.write(f"{ended(code, file.read().decode(errors='replace'))}\n".encode())
            report.flush()
    os._exit(0)


def _help(read: int, said: IO[bytes], work: Callable[[], None]) -> NoReturn:
    _speak_to(said.fileno())
    end_with(read)
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _speak_to(descriptor: int) -> None:
    """Let all that this process says go there."""
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
