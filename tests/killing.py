"""A command that is killed before its k-th call that changes files, in a child process."""

from __future__ import annotations

import builtins
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from bench.cli import execute

KILLED = 77
_CALLS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync", "link", "open")
_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _kill_before(k: int, log: Path) -> None:
    """Patch this process so that it dies before its k-th call; `log` counts them."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done == k:
            os._exit(KILLED)

    def counted(call: Callable, changes: Callable) -> Callable:
        def wrapper(*arguments, **options):
            if changes(*arguments, **options):
                count()
            return call(*arguments, **options)

        return wrapper

    def always(*_, **__):
        return True

    def opens(path, flags, *_, **__):
        return bool(flags & _CHANGES)

    def writes(path, mode="r", *_, **__):
        return not isinstance(path, int) and not set(mode).isdisjoint("wxa+")

    exit_now = os._exit
    for name in _CALLS:
        changes = opens if name == "open" else always
        setattr(os, name, counted(getattr(os, name), changes))
    io.open = builtins.open = counted(io.open, writes)

    def tell(code: int) -> None:
        descriptor = _OPEN(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, str(done).encode())
        exit_now(code)

    os._exit = lambda code: exit_now(code) if code == KILLED else tell(code)


_OPEN = os.open


def in_child(arguments: list[str], log: Path, k: int = 0) -> tuple[int, int]:
    """Exit code of the command in a child process, killed before its k-th call (0: not at all),
    and how many calls it made, where it came to its end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            _kill_before(k, log)
            code = execute(arguments)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code, 0 if code == KILLED else int(log.read_text())
