"""Shards: image ranges of an evaluation, claimed, saved whole and resumed by any process.

Any number of processes may work on one evaluation; whoever holds the claim on a shard computes it.
A saved shard is looked at before it is used: what is damaged is computed anew.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from bench.errors import one_line
from bench.storage.place import BEGUN, Held, Place

Arrays = dict[str, npt.NDArray[np.generic]]
Shard = tuple[int, int]
"""Half-open range of positions in the evaluation order."""

MIN_SHARD_IMAGES = 64
RANDOM_SHARDS = 4
"""Where the defense is random, one image takes a row a draw: few images are much work, and are
dealt out to so many shards, of some 32 images at least. Smaller shards than a batch cost a cheap
network a tenth of its time, so many images stay in whole batches."""
WAIT_SECONDS = 0.2
"""How long to wait for other processes before one looks again."""


class Busy(Exception):
    """Other processes are at work on all that is left of an evaluation."""


def shards_of(
    n: int, batch_size: int, unit: int | None = None, random: bool = False
) -> list[Shard]:
    """The shards of n images, as alike in size as can be: at most one batch each, but not so few
    images that files outweigh work. How many processes compute does not matter.

    Args:
        n: how many images.
        batch_size: most rows in one forward pass.
        unit: where images are attacked in units, one unit each: an attack that needs units is a
            long one.
        random: whether the defense is random: few images are dealt out to `RANDOM_SHARDS`.
    """
    if unit is None:
        most = max(batch_size, MIN_SHARD_IMAGES)
        if random:
            most = min(most, max(MIN_SHARD_IMAGES // 2, math.ceil(n / RANDOM_SHARDS)))
        shards = math.ceil(n / most)
        unit = math.ceil(n / shards) if shards else most
    return [(start, min(start + unit, n)) for start in range(0, n, unit)]


Check = Callable[[Shard, Arrays], str]
"""What is wrong with the arrays of a shard; empty where nothing is."""


def _nothing_wrong(_: Shard, __: Arrays) -> str:
    return ""


class Workspace:
    """The unfinished work of one evaluation.

    Args:
        place: where it lies.
        check: asked of every shard that is read.
    """

    def __init__(self, place: Place, check: Check = _nothing_wrong) -> None:
        self.place = place
        self._check = check
        self._begun: bytes | None = None
        self._ended = False

    def load(self, shard: Shard) -> Arrays | None:
        """A finished shard; None where there is none, or a damaged one."""
        try:
            arrays = read_arrays(self.place.read(file_of(shard)))
            wrong = self._check(shard, arrays)
        except FileNotFoundError:
            return None
        except Exception as error:
            # zip, zlib, NumPy and the file system have an error of their own for each damage.
            wrong = one_line(error)
        if not wrong:
            return arrays
        print(
            f"bench: {self.place}/{file_of(shard)} is damaged ({wrong}): computed anew",
            file=sys.stderr,
            flush=True,
        )
        return None

    def save(self, shard: Shard, arrays: Arrays) -> None:
        """Store a finished shard."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        self.place.write(file_of(shard), buffer.getvalue())

    @contextmanager
    def claim(self, shard: Shard) -> Iterator[Held | None]:
        """Try to claim a shard; yields the claim, or None. It beats until the block ends."""
        with self.place.claim(f"claim-{_range(shard)}") as claim:
            if claim and not self.place.holds(BEGUN):
                self.place.write(BEGUN, uuid.uuid4().hex.encode())
            yield claim

    def stands(self) -> bool:
        """Whether the work is the one that was here when this was asked last: nobody has cleared it
        away since. False the first time.
        """
        before, self._begun = self._begun, None
        with contextlib.suppress(FileNotFoundError):
            self._begun = self.place.read(BEGUN)
        return before is not None and self._begun == before

    def ended(self, stored: Callable[[], bool]) -> bool:
        """Whether the evaluation is finished: its record is `stored`.

        That is asked only where the work does not stand, since to look among a hundred thousand
        records takes a tenth of a second, and this is asked at every shard. Once it is finished, it
        is for good: the next claim begins new work in the folder, which stands from then on.
        """
        self._ended = self._ended or (not self.stands() and stored())
        return self._ended

    def has_work(self, shards: Iterable[Shard]) -> bool:
        """Whether one of these shards is neither saved nor in another process's hands."""
        for shard in shards:
            if not self.place.holds(file_of(shard)):
                with self.claim(shard) as claim:
                    if claim:
                        return True
        return False

    def holds(self, shards: Iterable[Shard]) -> bool:
        """Whether all of these shards are saved."""
        return all(self.place.holds(file_of(shard)) for shard in shards)


def read_arrays(data: bytes) -> Arrays:
    """The arrays of a shard's file; whatever NumPy raises where it is none."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def file_of(shard: Shard) -> str:
    """The name of a shard's file."""
    return f"shard-{_range(shard)}.npz"


_FILE = re.compile(r"shard-([0-9]{7,})-([0-9]{7,})\.npz")


def shard_of(name: str) -> Shard | None:
    """The shard whose file has this name; None for other files."""
    match = _FILE.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def _range(shard: Shard) -> str:
    return f"{shard[0]:07d}-{shard[1]:07d}"


def complete(
    work: Workspace,
    shards: list[Shard],
    compute: Callable[[Shard], Arrays],
    finished: Callable[[], bool],
    report: Callable[[Shard, Arrays], None],
    patient: bool = True,
) -> dict[Shard, Arrays] | None:
    """All shards, computed here or by others; None if another process finished meanwhile.

    Args:
        work: the shared folder.
        shards: what to complete, in the order of preference.
        compute: makes one shard.
        finished: whether the record is already stored.
        report: called for each shard that is there, whoever made it.
        patient: whether to wait for what other processes are at.

    Raises:
        Busy: where others are at all that is left, and this is not to wait for them.
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
            if not patient:
                raise Busy
            time.sleep(WAIT_SECONDS)
    return results


def _obtain(
    work: Workspace, shard: Shard, compute: Callable[[Shard], Arrays], finished: Callable[[], bool]
) -> Arrays | None:
    """A shard, loaded or computed; None while another process has it, or when all is done."""
    arrays = work.load(shard)
    if arrays is not None:
        return arrays
    with work.claim(shard) as claim:
        if not claim:
            return None
        arrays = work.load(shard)
        if arrays is None:
            # Asked after the shard was looked for: whoever ends the evaluation clears shards away.
            if finished():
                return None
            arrays = compute(shard)
            if not claim.held():
                # Another process took us for dead: the shard is that one's.
                return None
            work.save(shard, arrays)
        return arrays
