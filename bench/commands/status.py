"""`bench status`: what runs where, what is done, what failed, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.engine.shards import shard_of
from bench.errors import BadInput
from bench.results.agenda import Agenda, Item, agendas
from bench.results.durations import duration
from bench.results.store import is_failure, lies_beside, read_failure
from bench.storage.claims import Owner, owner_of
from bench.storage.files import found


@dataclass(frozen=True)
class Running:
    """A claim of a process at work.

    Attributes:
        title: the evaluation; its id where no command announced it.
        done, images: how many of its images are finished; 0 of 0 where that is not known.
        work: what is claimed, such as `images 128 to 256`.
        owner: who holds the claim.
    """

    title: str
    done: int
    images: int
    work: str
    owner: Owner


@dataclass(frozen=True)
class Status:
    """What a folder of records says of the work in it.

    Attributes:
        folder: the folder.
        records: how many there are.
        failures: title and error of each crash that has no record.
        planned, done, failed: evaluations that commands at work announced, and what became of them.
        running: the claims.
        left: seconds until the announced work is done; None where that cannot be told.
    """

    folder: str
    records: int
    failures: list[tuple[str, str]]
    planned: int
    done: int
    failed: int
    running: list[Running]
    left: float | None

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.records} records, {len(self.failures)} failures"]
        if self.planned:
            rest = "" if self.left is None else f", about {duration(self.left)} left"
            lines.append(f"{self.done} of {self.planned} evaluations, {self.failed} failed{rest}")
        if not self.running:
            lines.append("nothing runs here")
        lines += [
            f"  {one.title}: {one.done} of {one.images} images; {one.work} at {one.owner.host}, "
            f"process {one.owner.pid}, for {duration(one.owner.seconds)}"
            + ("" if one.owner.alive else f": gone, no sign for {duration(one.owner.sign)}")
            for one in self.running
        ]
        return "\n".join([*lines, *(f"failed: {title}: {error}" for title, error in self.failures)])


def status(folder: Path) -> Status:
    """Look at a folder; nothing is written. Raises `BadInput` where there is none."""
    if not folder.is_dir():
        raise BadInput(f"no such folder: {folder}: name the folder that --out named")
    records, failures = set(), {}
    for path in folder.glob("*--*.json"):
        if is_failure(path):
            failures[path.name.removesuffix(".error.json").rpartition("--")[2]] = path
        elif not lies_beside(path):
            records.add(path.stem.rpartition("--")[2])
    announced = agendas(folder)
    items = {name: item for agenda, _ in announced for name, item in agenda.items.items()}
    running = list(_running(folder, items))
    alive = any(one.owner.alive for one in running)
    left_behind = {name: path for name, path in failures.items() if name not in records}
    return Status(
        folder=str(folder),
        records=len(records),
        failures=[_failure(path) for path in left_behind.values()],
        planned=len(items),
        done=sum(name in records for name in items),
        failed=sum(name in left_behind for name in items),
        running=running,
        left=_left(folder, announced, {*records, *left_behind}) if alive else None,
    )


def _failure(path: Path) -> tuple[str, str]:
    failure = read_failure(path)
    title = failure.title
    return f"{title['defense']} x {title['attack']}", failure.error.partition("\n")[0]


def _running(folder: Path, items: dict[str, Item]) -> Iterator[Running]:
    for claim in sorted(found(folder / ".work", "*/**/claim-*")):
        owner = owner_of(claim)
        if owner is None:
            continue
        name = claim.relative_to(folder / ".work").parts[0]
        item = items.get(name)
        start, end = claim.name.split("-")[1:]
        work = f"images {int(start)} to {int(end)}"
        yield Running(
            title=item.title if item else name,
            done=_images(folder / ".work" / name),
            images=item.images if item else 0,
            work="probes" if claim.parent.name == "probes" else work,
            owner=owner,
        )


def _images(work: Path) -> int:
    """Images of an evaluation's finished shards, those of its largest folder."""
    done = [0]
    for folder in found(work, "*"):
        shards = (shard_of(path.name) for path in found(folder, "shard-*.npz"))
        done.append(sum(shard[1] - shard[0] for shard in shards if shard))
    return max(done)


def _left(folder: Path, announced: list[tuple[Agenda, float]], ended: set[str]) -> float | None:
    """The longest rest of the announced work, at the speed so far."""
    rests = []
    for agenda, began in announced:
        total = sum(item.passes for item in agenda.items.values())
        done = sum(
            item.passes * (1.0 if name in ended else _images(folder / ".work" / name) / item.images)
            for name, item in agenda.items.items()
        )
        if not done:
            return None
        rests.append((time.time() - began) * (total - done) / done)
    return max(rests, default=None)
