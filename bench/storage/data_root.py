"""The folder of published data and weights."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BadInput

_ROOT = "BENCH_DATA_ROOT"


def data_root() -> Path:
    """The folder of downloaded files: BENCH_DATA_ROOT, else `bench` in XDG_CACHE_HOME, else
    ~/.cache/bench.
    """
    given = os.environ.get(_ROOT)
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bench"


@contextlib.contextmanager
def rooted(folder: str | Path | None) -> Iterator[None]:
    """Make `folder` the data root of this process and its children for a while; None changes
    nothing.

    Raises `BadInput` where it is a file.
    """
    if folder is not None and os.path.isfile(folder):
        raise BadInput(f"the data root {folder} is a file: give the folder that holds the data")
    before = os.environ.get(_ROOT)
    if folder is not None:
        os.environ[_ROOT] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(_ROOT, None)
        if before is not None:
            os.environ[_ROOT] = before
