"""The folder of published data and weights."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BadInput, one_line

_ROOT = "BENCH_DATA_ROOT"


def data_root() -> Path:
    """The folder of downloaded files: BENCH_DATA_ROOT, else `bench` in XDG_CACHE_HOME, else
    ~/.cache/bench.
    """
    given = os.environ.get(_ROOT)
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bench"


def _check(folder: Path) -> None:
    try:
        there = folder.expanduser().stat()
    except FileNotFoundError:
        return
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"the data root {folder!s} cannot be a folder ({one_line(error)}): give another"
        ) from error
    if not stat.S_ISDIR(there.st_mode):
        raise BadInput(f"the data root {folder} is a file: give the folder that holds the data")


@contextlib.contextmanager
def rooted(folder: str | Path | None) -> Iterator[None]:
    """Make `folder` the data root of this process and its children for a while; None changes
    nothing.

    Raises `BadInput` where it is a file, or cannot be a folder.
    """
    if folder is not None:
        _check(Path(folder))
    before = os.environ.get(_ROOT)
    if folder is not None:
        os.environ[_ROOT] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(_ROOT, None)
        if before is not None:
            os.environ[_ROOT] = before
