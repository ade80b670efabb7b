"""Claims on shared work: a folder with a heartbeat says who works on what.

    <claim>/owner.json        the first owner: a random token, and where its lock counts
    <claim>/owner-2.json      who took over from the first one, and so on: the last one owns

Files are made exclusively, so that each owner has one successor at most. A process is told by its
token: host names, process numbers and clocks of containers and hosts need not agree. Two things
show that an owner is gone:

- its lock. The system drops it with the process. It counts under the same kernel and on the same
  mounted file system, whatever the containers; elsewhere it says nothing.
- its heartbeat, the time of its file, which stands still. It is compared with the time of a file
  made just now in the same place, so that both come from the clock of the file server.

An owner that was taken for dead (a laptop that slept) finds a successor beside it, and drops
its work.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.storage.files import make_folder, writing

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0

_OWNER = re.compile(r"owner(?:-([1-9][0-9]{0,8}))?\.json")


@dataclass(frozen=True)
class Claim:
    """Our claim on some work.

    Attributes:
        folder: the claim's folder.
        number: how many owners there were, with us.
        token: what tells our file from another one of the same name.
    """

    folder: Path
    number: int
    token: str

    def held(self) -> bool:
        """Whether the claim is still ours: nobody took it over meanwhile."""
        last = _last_owner(self.folder)
        return last == self.number and _content(self._file).get("token") == self.token

    @property
    def _file(self) -> Path:
        return self.folder / _name(self.number)


@dataclass(frozen=True)
class Owner:
    """Who holds a claim.

    Attributes:
        host, pid: the process, as it names itself.
        seconds: for how long.
        sign: seconds since its last sign of life.
        alive: whether it is still there, as far as can be told from here.
    """

    host: str
    pid: int
    seconds: float
    sign: float
    alive: bool


def owner_of(folder: Path) -> Owner | None:
    """Who holds the claim in a folder; None where nobody does. Nothing is written."""
    last = _last_owner(folder)
    file, now = folder / _name(last), time.time()
    about = _content(file) if last else {}
    try:
        with file.open("rb") as opened:
            state = os.fstat(opened.fileno())
            released = _is_released(about, opened)
        seconds = now - folder.stat().st_mtime
    except FileNotFoundError:
        return None
    sign = max(0.0, now - state.st_mtime)
    return Owner(
        host=str(about.get("host", "?")),
        pid=int(about.get("pid", 0)),
        seconds=max(0.0, seconds),
        sign=sign,
        alive=not released and sign <= STALE_SECONDS,
    )


@contextmanager
def claimed(folder: Path) -> Iterator[Claim | None]:
    """Claim work inside the block, by making `folder`; yields the claim, or None where it is
    not ours.

    Ours gives a sign of life every `BEAT_SECONDS` and goes at the end of the block. A claim whose
    owner is gone, or gave no sign for `STALE_SECONDS`, is taken over.

    Args:
        folder: must not exist otherwise; its parent must.
    """
    with contextlib.ExitStack() as stack:
        try:
            with writing(folder):
                claim = _take(folder, stack)
        except FileNotFoundError:
            # Another process has just finished the work and dropped its folder.
            claim = None
        if claim is None:
            yield None
            return
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(claim, stop), daemon=True)
        beat.start()
        try:
            yield claim
        finally:
            stop.set()
            beat.join()
            if claim.held():
                _drop(claim)


def _take(folder: Path, stack: contextlib.ExitStack) -> Claim | None:
    """Become the next owner, unless the last one lives. The lock is held until `stack` closes."""
    make_folder(folder)
    last = _last_owner(folder)
    if last and not _gone(folder, folder / _name(last)):
        return None
    claim = Claim(folder, last + 1, uuid.uuid4().hex)
    try:
        # Without a buffer: closing it writes nothing, so that it cannot fail on a full disk.
        file = stack.enter_context((folder / _name(claim.number)).open("xb", buffering=0))
    except FileExistsError:
        return None
    with contextlib.suppress(OSError):
        # Some file systems know no locks: there the heartbeat alone tells.
        fcntl.flock(file, fcntl.LOCK_EX)
        stack.callback(fcntl.flock, file, fcntl.LOCK_UN)
    about = {
        "token": claim.token,
        "kernel": _kernel(),
        "device": os.fstat(file.fileno()).st_dev,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    try:
        file.write(json.dumps(about).encode())
    except OSError:
        _drop(claim)
        raise
    return claim if claim.held() else None


def _last_owner(folder: Path) -> int:
    """The number of the last owner; 0 without one."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    matches = filter(None, map(_OWNER.fullmatch, names))
    return max((int(match[1] or 1) for match in matches), default=0)


def _name(number: int) -> str:
    return "owner.json" if number == 1 else f"owner-{number}.json"


def _content(path: Path) -> dict[str, Any]:
    """What an owner wrote; empty where nobody can read it."""
    try:
        content = json.loads(path.read_bytes()[:10_000])
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _gone(folder: Path, file: Path) -> bool:
    """Whether the owner who wrote this file is gone."""
    about = _content(file)
    try:
        with file.open("rb") as opened:
            state = os.fstat(opened.fileno())
            if _is_released(about, opened):
                return True
        # Who wrote no token keeps the folder's time alone.
        beat = state if "token" in about else folder.stat()
    except FileNotFoundError:
        return False
    with tempfile.TemporaryFile(dir=folder.parent) as probe:
        probe.write(b"now")
        probe.flush()
        return os.fstat(probe.fileno()).st_mtime - beat.st_mtime > STALE_SECONDS


def _is_released(about: dict[str, Any], file: Any) -> bool:
    """Whether the lock on an owner's file counts here, and nobody holds it."""
    here = _kernel() and about.get("kernel") == _kernel()
    on_this = about.get("device") == os.fstat(file.fileno()).st_dev
    return bool(here) and on_this and _unlocked(file)


def _unlocked(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@cache
def _kernel() -> str:
    """What tells the running kernel from any other one, in all of its containers; empty where
    that cannot be told.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _drop(claim: Claim) -> None:
    """Remove the claim; ours last, so that nobody sees an earlier owner."""
    with contextlib.suppress(OSError):
        for path in sorted(claim.folder.iterdir(), key=lambda path: path == claim._file):
            path.unlink()
        claim.folder.rmdir()


def _beat(claim: Claim, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            # No time of ours: the file server writes its own.
            os.utime(claim.folder / _name(claim.number))
