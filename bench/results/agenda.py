"""What a command is about to compute, beside its records while it runs: `bench status` reads it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.storage.files import write_whole
from bench.storage.identity import identity_hash

_PATTERN = ".work/agenda-*.json"


class Item(BaseModel):
    """An evaluation that is to be computed.

    Attributes:
        title: to read.
        images: how many it has.
        passes: how much work it is beside others, in any unit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    images: int
    passes: float


class Agenda(BaseModel):
    """What one command computes.

    Attributes:
        host, pid: where it runs.
        items: its evaluations by id, without those that were stored before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    pid: int
    items: dict[str, Item]


@contextmanager
def announced(folder: Path, items: Mapping[str, Item], asked: Iterable[str]) -> Iterator[None]:
    """Let the folder say inside the block what is computed; a killed process leaves it there, and
    the same command takes it up.

    Args:
        folder: of records.
        items: what is to be computed, by id.
        asked: the ids of all that the command asks for, what is stored included.
    """
    path = folder / _PATTERN.replace("*", identity_hash({"asked": sorted(asked)}))
    if items:
        agenda = Agenda(host=socket.gethostname(), pid=os.getpid(), items=dict(items))
        write_whole(path, agenda.model_dump_json(indent=1).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def agendas(folder: Path) -> list[tuple[Agenda, float]]:
    """What is announced in a folder, and when, in seconds of the clock."""
    found = []
    for path in sorted(folder.glob(_PATTERN)):
        try:
            found.append((Agenda.model_validate_json(path.read_bytes()), path.stat().st_mtime))
        except (OSError, ValidationError):
            # It ends just now, or it is of another version.
            continue
    return found
