"""Work in progress: parts of a cell, claimed by folder with a heartbeat, saved whole, resumed by anybody.

Any number of processes may work on one cell. A part is an image range; whoever holds its claim computes it. A claim whose
heartbeat stopped, or whose process on this host is gone, is taken over.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.record import write_whole

Arrays = dict[str, npt.NDArray[np.generic]]
Part = tuple[int, int]
"""Half-open range of positions in the evaluation order."""

MIN_PART_IMAGES = 64
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0


def parts_of(n: int, batch_size: int, unit: int | None = None) -> list[Part]:
    """The parts of n images: one batch each, but not so few images that files outweigh work.

    Where images are attacked in units, one unit each: an attack that needs units is a long one.
    """
    size = max(batch_size, MIN_PART_IMAGES) if unit is None else unit
    return [(start, min(start + size, n)) for start in range(0, n, size)]


class Workspace:
    """The folder of one cell's unfinished work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, part: Part) -> Arrays | None:
        """A finished part, or None."""
        try:
            with np.load(self._file(part), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None

    def save(self, part: Part, arrays: Arrays) -> None:
        """Store a finished part."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_whole(self._file(part), buffer.getvalue())

    def remove(self) -> None:
        """Drop the folder once the record stands."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def claim(self, part: Part) -> Iterator[bool]:
        """Try to claim a part; yields whether it is ours. The claim beats until the block ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with claimed(self.folder / f"claim-{part[0]:07d}-{part[1]:07d}") as ours:
            yield ours

    def _file(self, part: Part) -> Path:
        return self.folder / f"part-{part[0]:07d}-{part[1]:07d}.npz"


def complete(
    work: Workspace,
    parts: list[Part],
    compute: Callable[[Part], Arrays],
    finished: Callable[[], bool],
    report: Callable[[Part, Arrays], None],
) -> dict[Part, Arrays] | None:
    """All parts, computed here or by others; None if another process finished the cell meanwhile.

    Args:
        work: the shared folder.
        parts: what to complete, in the order of preference.
        compute: makes one part.
        finished: whether the cell's record already stands.
        report: told of each part that is there, whoever made it.
    """
    results: dict[Part, Arrays] = {}
    while len(results) < len(parts):
        if finished():
            return None
        before = len(results)
        for part in parts:
            if part not in results:
                arrays = _obtain(work, part, compute, finished)
                if arrays is not None:
                    results[part] = arrays
                    report(part, arrays)
        if len(results) == before:
            time.sleep(0.2)
    return results


def _obtain(work: Workspace, part: Part, compute: Callable[[Part], Arrays], finished: Callable[[], bool]) -> Arrays | None:
    """A part, loaded or computed; None while another process has it, or when the cell is finished."""
    arrays = work.load(part)
    if arrays is not None:
        return arrays
    with work.claim(part) as ours:
        if not ours or finished():
            return None
        arrays = work.load(part)
        if arrays is None:
            arrays = compute(part)
            work.save(part, arrays)
        return arrays


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Try to make this folder, whose parent exists, the sign that somebody works; yields whether it is ours.

    It beats until the block ends, and goes then. One without heartbeat or process is taken over.
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
        # Another process has just finished the cell and dropped its folder.
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
