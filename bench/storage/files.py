"""Files that appear whole or not at all, and what is said where they cannot be written."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.errors import BadInput

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.EFBIG,
    errno.EIO,
}
_TRIES = 100


class CannotWrite(OSError, BadInput):
    """The disk is full, read-only or broken: every further write would fail alike.

    Args:
        number, reason, path: as `OSError` takes them.
    """

    def __str__(self) -> str:
        advice = (
            "free some space; nothing that was finished is lost, and the same command goes on"
            if self.errno in _FULL
            else "give a place that can be written"
        )
        return f"cannot write {self.filename} ({self.strerror}): {advice}"


def cannot_write(error: BaseException, path: Path | None = None) -> CannotWrite | None:
    """What such an error means for whoever wrote to `path`; None where it is of another kind."""
    if isinstance(error, CannotWrite):
        return error
    if isinstance(error, OSError) and error.errno in _FULL | _FORBIDDEN:
        where = path or error.filename or "a file"
        return CannotWrite(error.errno, error.strerror, str(where))
    return None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the failures of a disk inside the block into `CannotWrite`; others pass."""
    try:
        yield
    except OSError as error:
        told = cannot_write(error, path)
        if told is None or told is error:
            raise
        raise told from error


def write_whole(path: Path, data: bytes, scratch: Path | None = None) -> None:
    """Write a file so that a reader sees all of it or nothing, even after a crash.

    A process that is killed meanwhile leaves `.tmp-NAME-...`.

    Args:
        path: the file; folders that are missing are made.
        data: its content.
        scratch: a folder of the same file system for the unfinished file; that of `path` by
            default. Who gives one clears it away.

    Raises `CannotWrite` where the disk is full or may not be written. Where another process clears
    one of the folders away meanwhile, it is made again.
    """
    folder = scratch or path.parent
    temporary = folder / f"{_mark(path)}{uuid.uuid4().hex}"
    with writing(path):
        for last in _tries():
            for parent in {path.parent, folder}:
                make_folder(parent, parents=True)
            try:
                _write(temporary, data)
                os.replace(temporary, path)
                return
            except FileNotFoundError:
                if last:
                    raise
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _tries() -> Iterator[bool]:
    """Whether a try is the last one: another process may drop a folder between two steps, and may
    do so again, but not for ever.
    """
    yield from (number == _TRIES for number in range(1, _TRIES + 1))


def write_folder(folder: Path, files: Mapping[str, bytes], scratch: Path) -> None:
    """Write a folder of files, by name, that appears whole under its name.

    Args:
        folder: must not exist; its parent must.
        files: their contents.
        scratch: where it grows, on the same file system; what is there is thrown away.
    """
    with writing(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            for name, data in files.items():
                write_whole(scratch / name, data)
            os.rename(scratch, folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def clear_unfinished(path: Path) -> None:
    """Remove what killed processes left of a file that only one process writes at a time."""
    mark = _mark(path)
    for left in path.parent.glob(".tmp-*"):
        if left.name.startswith(mark):
            left.unlink(missing_ok=True)


def make_folder(folder: Path, *, parents: bool = False) -> None:
    """Make a folder unless it is there, also where another process drops it, or a folder that it
    lies in, meanwhile.

    `Path.mkdir` raises where the folder was there when it was to be made, and gone when it was
    looked at, and where a parent that it made is gone when the folder is to be made in it. Raises
    `FileExistsError` where a file is in the way, and `FileNotFoundError` where a parent is missing
    that is not to be made.
    """
    for last in _tries():
        try:
            folder.mkdir(parents=parents, exist_ok=True)
            return
        except FileExistsError:
            if last or (os.path.lexists(folder) and not folder.is_dir()):
                raise
        except FileNotFoundError:
            if last or not parents:
                raise


def found(folder: Path, pattern: str) -> Iterator[Path]:
    """What matches a pattern below a folder, also where another process drops folders meanwhile:
    `Path.glob` raises there.

    Args:
        pattern: as `glob.glob` takes it; `**` stands for any number of folders.
    """
    return (folder / name for name in glob.iglob(pattern, root_dir=folder, recursive=True))


def check_folder(folder: Path) -> None:
    """Raise `OSError` where no file can be made in a folder; it is made where it is missing."""
    make_folder(folder, parents=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"\0" * 4096)
        probe.flush()
        os.fsync(probe.fileno())


def _mark(path: Path) -> str:
    return f".tmp-{path.name[:100]}-"
