"""Shards: image ranges of an evaluation, claimed, saved whole and resumed by any process.

Any number of processes may work on one evaluation; whoever holds the claim on a shard computes it.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.storage.claims import claimed
from bench.storage.files import write_whole

Arrays = dict[str, npt.NDArray[np.generic]]
Shard = tuple[int, int]
"""Half-open range of positions in the evaluation order."""

MIN_SHARD_IMAGES = 64


def shards_of(n: int, batch_size: int, unit: int | None = None) -> list[Shard]:
    """The shards of n images: one batch each, but not so few images that files outweigh work.

    Where images are attacked in units, one unit each: an attack that needs units is a long one.
    """
    size = max(batch_size, MIN_SHARD_IMAGES) if unit is None else unit
    return [(start, min(start + size, n)) for start in range(0, n, size)]


class Workspace:
    """The folder of the unfinished work of one evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, shard: Shard) -> Arrays | None:
        """A finished shard, or None."""
        try:
            with np.load(self._file(shard), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None

    def save(self, shard: Shard, arrays: Arrays) -> None:
        """Store a finished shard."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_whole(self._file(shard), buffer.getvalue())

    def remove(self) -> None:
        """Drop the folder once the record is stored."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def claim(self, shard: Shard) -> Iterator[bool]:
        """Try to claim a shard; yields whether it is ours. The claim beats until the block ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with claimed(self.folder / f"claim-{shard[0]:07d}-{shard[1]:07d}") as ours:
            yield ours

    def _file(self, shard: Shard) -> Path:
        return self.folder / f"shard-{shard[0]:07d}-{shard[1]:07d}.npz"


def complete(
    work: Workspace,
    shards: list[Shard],
    compute: Callable[[Shard], Arrays],
    finished: Callable[[], bool],
    report: Callable[[Shard, Arrays], None],
) -> dict[Shard, Arrays] | None:
    """All shards, computed here or by others; None if another process finished meanwhile.

    Args:
        work: the shared folder.
        shards: what to complete, in the order of preference.
        compute: makes one shard.
        finished: whether the record is already stored.
        report: called for each shard that is there, whoever made it.
    """
    results: dict[Shard, Arrays] = {}
    while len(results) < len(shards):
        if finished():
            return None
        before = len(results)
        for shard in shards:
            if shard not in results:
                arrays = _obtain(work, shard, compute, finished)
                if arrays is not None:
                    results[shard] = arrays
                    report(shard, arrays)
        if len(results) == before:
            time.sleep(0.2)
    return results


def _obtain(
    work: Workspace, shard: Shard, compute: Callable[[Shard], Arrays], finished: Callable[[], bool]
) -> Arrays | None:
    """A shard, loaded or computed; None while another process has it, or when all is done."""
    arrays = work.load(shard)
    if arrays is not None:
        return arrays
    with work.claim(shard) as ours:
        if not ours or finished():
            return None
        arrays = work.load(shard)
        if arrays is None:
            arrays = compute(shard)
            work.save(shard, arrays)
        return arrays
