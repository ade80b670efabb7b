"""`bench merge`: folders of records into one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BadInput
from bench.results.record import Record
from bench.results.store import (
    audit_path,
    certificate_path,
    files_below,
    is_failure,
    read_bare_record,
    read_failure,
    read_record,
)
from bench.results.weights import file_of_weights
from bench.storage.files import check_folder, found, write_whole


@dataclass(frozen=True)
class Merged:
    """What a folder holds by now.

    Attributes:
        out: the folder.
        records, failures: how many it holds.
        files: how many files were written now.
        unfinished: evaluations that were not finished in the folders, whose shards were left there.
    """

    out: str
    records: int
    failures: int
    files: int
    unfinished: int

    def __str__(self) -> str:
        left = f"; {self.unfinished} unfinished evaluations were left" if self.unfinished else ""
        return (
            f"{self.out}: {self.records} records, {self.failures} failures, {self.files} files "
            f"written{left}"
        )


def merge(folders: Sequence[Path], out: Path) -> Merged:
    """Join folders of records; what is in `out` already counts as one of them, and as the first.

    Of an evaluation that several folders hold, one record is kept: they must say the same of every
    image, and may differ in points, time and machine. Nothing is written before all is checked.

    Raises:
        BadInput: where a folder is missing, a file is damaged, or two records of one evaluation
            contradict each other.
    """
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(f"no such folder: {folder}: name folders that --out named")
    places = [*([out] if out.is_dir() else []), *folders]
    records, failures = _found(places)
    wanted: dict[Path, bytes] = {}
    for same in records.values():
        home = same[0][0].parent
        wanted |= files_of_record(same, home if home.is_relative_to(out) else out)
    kept = 0
    for path in failures.values():
        title = read_failure(path).title
        if not any(one[0][1].title == title for one in records.values()):
            kept += 1
            wanted[out / path.name] = path.read_bytes()
    try:
        check_folder(out)
    except OSError as error:
        raise BadInput(f"cannot write to {out} ({error.strerror}): give another --out") from error
    new = {path: data for path, data in wanted.items() if not _holds(path, data)}
    # Points first: who reads a record meanwhile finds them.
    for path in sorted(new, key=lambda path: path.suffix == ".json"):
        write_whole(path, new[path])
    unfinished = {one.name for place in folders for one in _unfinished(place)} - set(records)
    return Merged(str(out), len(records), kept, len(new), len(unfinished))


_Same = list[tuple[Path, Record]]


def _found(places: Sequence[Path]) -> tuple[dict[str, _Same], dict[str, Path]]:
    """The records of each evaluation, and a failure of each one that has no record."""
    records: dict[str, _Same] = {}
    failures: dict[str, Path] = {}
    for place in places:
        for path in files_below(place):
            if is_failure(path):
                failures.setdefault(read_failure(path).id, path)
                continue
            record = read_bare_record(path)
            same = records.setdefault(record.id, [])
            if same:
                _check_alike(*same[0], path, record)
            same.append((path, record))
    return records, {name: path for name, path in failures.items() if name not in records}


_VERDICTS = ("outcomes", "stages", "targets")


def _check_alike(first: Path, one: Record, second: Path, other: Record) -> None:
    for name in _VERDICTS:
        if getattr(one, name) != getattr(other, name):
            raise BadInput(
                f"{first} and {second} are two records of one evaluation with different {name}: "
                "run `bench verify` on both, and remove the wrong one"
            )


def files_of_record(same: Sequence[tuple[Path, Record]], home: Path) -> dict[Path, bytes]:
    """The first of these records of one evaluation with its points, and the first audit and
    certificate of it and weights of its defense, as they are to lie in a folder.

    Raises:
        BadInput: where points are not those of the record, or what lies beside it is not its own.
    """
    path, record = same[0]
    files = {home / path.name: path.read_bytes()}
    if record.points is not None:
        points = path.with_name(record.points.file)
        if points.is_file():
            data = files[home / points.name] = points.read_bytes()
            if hashlib.sha256(data).hexdigest() != record.points.sha256:
                raise BadInput(f"{points} is damaged: run the evaluation again, or remove it")
    weights = file_of_weights(record)
    for other, _ in same:
        if (other.parent / weights).is_file():
            files[home / weights] = (other.parent / weights).read_bytes()
            break
    for beside in (audit_path, certificate_path):
        for other, _ in same:
            if beside(other).is_file():
                # Raises where it belongs to another record.
                read_record(other)
                files[home / beside(path).name] = beside(other).read_bytes()
                break
    return files


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def _unfinished(folder: Path) -> Iterator[Path]:
    """Folders of unfinished evaluations."""
    return (shard.parent.parent for shard in found(folder / ".work", "*/*/shard-*.npz"))
