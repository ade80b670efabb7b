"""A folder of files that several processes work in: they claim names, and write files whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from bench.storage.claims import claimed
from bench.storage.files import found, make_folder, write_whole, writing

BEGUN = "begun"
"""A file with a token: other work in the same folder has another one."""


def clear_work(folder: Path) -> None:
    """Remove a folder with places in it. Their tokens go first: whoever misses a file that is gone
    finds the token gone as well.
    """
    for token in found(folder, f"**/{BEGUN}"):
        token.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


class Held(Protocol):
    """A claim of ours."""

    def held(self) -> bool:
        """Whether it is still ours: nobody took it over meanwhile."""
        ...


class Place:
    """A folder on a file system.

    Args:
        folder: need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def within(self, name: str) -> Place:
        """A folder inside this one."""
        return Place(self.folder / name)

    def read(self, name: str) -> bytes:
        """A file. Raises `FileNotFoundError` where there is none."""
        return (self.folder / name).read_bytes()

    def holds(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.folder / name).exists()

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole."""
        write_whole(self.folder / name, data)

    @contextmanager
    def claim(self, name: str) -> Iterator[Held | None]:
        """Try to claim a name; yields the claim, or None. It beats until the block ends."""
        with writing(self.folder):
            make_folder(self.folder, parents=True)
        with claimed(self.folder / name) as claim:
            yield claim
