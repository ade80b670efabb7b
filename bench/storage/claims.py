"""Claims on shared work: a folder with a heartbeat says who works on what.

A claim whose heartbeat stopped, or whose process on this host is gone, is taken over.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Claim work inside the block, by making `folder`; yields whether the claim is ours.

    Ours gives a sign of life every `BEAT_SECONDS` and goes at the end of the block. A claim whose
    last sign is older than `STALE_SECONDS`, or whose process on this host is gone, is taken over.

    Args:
        folder: must not exist otherwise; its parent must.
    """
    if not _take(folder):
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        shutil.rmtree(folder, ignore_errors=True)


def _take(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileNotFoundError:
        # Another process has just finished the work and dropped its folder.
        return False
    except FileExistsError:
        if not _abandoned(folder):
            return False
        # Only one process can rename the folder away; the others fail and look again later.
        grave = folder.with_name(f".dead-{folder.name}-{os.getpid()}-{time.monotonic_ns()}")
        try:
            folder.rename(grave)
        except OSError:
            return False
        shutil.rmtree(grave, ignore_errors=True)
        return _take(folder)
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    try:
        (folder / "owner.json").write_text(owner, encoding="utf-8")
    except FileNotFoundError:
        return False
    return True


def _abandoned(folder: Path) -> bool:
    try:
        age = time.time() - folder.stat().st_mtime
        owner = json.loads((folder / "owner.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return _older_than(folder, STALE_SECONDS)
    if owner["host"] == socket.gethostname() and not _alive(int(owner["pid"])):
        return True
    return age > STALE_SECONDS


def _older_than(folder: Path, seconds: float) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > seconds
    except FileNotFoundError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _beat(folder: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        try:
            os.utime(folder)
        except FileNotFoundError:
            return
