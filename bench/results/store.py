"""The store: a folder of records, one JSON file each, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from bench.errors import BadInput
from bench.results.record import SCHEMA, Failure, Record, file_stem
from bench.storage.files import write_whole


class Store:
    """A folder of records. Writers cannot harm each other: a file is named by what it holds and
    appears whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check_writable(self) -> None:
        """Raise `BadInput` where records cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / f".probe-{os.getpid()}", b"")
            (self.folder / f".probe-{os.getpid()}").unlink()
        except OSError as error:
            raise BadInput(
                f"cannot write to {self.folder} ({error.strerror}): give another folder with --out"
            ) from error

    def find(self, evaluation: str) -> Record | None:
        """The record of an evaluation, by its id; None where there is none. A damaged one counts as
        none, and will be replaced.
        """
        for path in self.folder.glob(f"*--{evaluation}.json"):
            try:
                return read_record(path)
            except BadInput:
                continue
        return None

    def save(self, record: Record) -> Path:
        """Write a record and drop an earlier failure of the same evaluation."""
        path = self.folder / f"{record.stem}.json"
        write_whole(path, to_json(record))
        for failure in self.folder.glob(f"*--{record.id}.error.json"):
            failure.unlink(missing_ok=True)
        return path

    def save_failure(self, failure: Failure) -> Path:
        path = self.folder / f"{file_stem(failure.title, failure.id)}.error.json"
        write_whole(path, to_json(failure))
        return path

    def work(self, evaluation: str) -> Path:
        """Folder of an evaluation's unfinished work."""
        return self.folder / ".work" / evaluation


def to_json(model: BaseModel) -> bytes:
    """A record or failure as it is written to disk."""
    return (json.dumps(model.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()


def read_record(path: Path) -> Record:
    """Raises `BadInput` where the file is no record."""
    return _read_as(Record, path)


def is_failure(path: Path) -> bool:
    """Whether a file of the store is the report of a crash, by its name."""
    return path.name.endswith(".error.json")


def read_failure(path: Path) -> Failure:
    """Raises `BadInput` where the file is no failure."""
    return _read_as(Failure, path)


M = TypeVar("M", bound=BaseModel)


def _read_as(kind: type[M], path: Path) -> M:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(
            f"cannot read the record {path} ({error.strerror}): check the path"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(
            f"{path} is no record of schema {SCHEMA} ({where}: {first['msg']}): run the evaluation "
            "again"
        ) from None


def read(path: Path) -> Record | Failure:
    return read_failure(path) if is_failure(path) else read_record(path)


def read_folder(folder: Path) -> Iterator[Record | Failure]:
    """All records and failures below a folder, sorted by path; hidden folders are passed over."""
    if not folder.is_dir():
        raise BadInput(
            f"no such folder: {folder}: run some evaluations first, or name the folder that holds "
            "records"
        )
    for path in sorted(folder.rglob("*--*.json")):
        if any(name.startswith(".") for name in path.relative_to(folder).parts):
            continue
        yield read(path)


def read_all(places: Iterable[Path]) -> tuple[list[Record], list[Failure]]:
    """All records and failures in these files and below these folders, each evaluation once. A
    failure of an evaluation that also has a record is left out.
    """
    records: dict[str, Record] = {}
    failures: dict[str, Failure] = {}
    for place in places:
        for result in [read(place)] if place.is_file() else read_folder(place):
            if isinstance(result, Record):
                records.setdefault(result.id, result)
            else:
                failures.setdefault(result.id, result)
    done = [record.title for record in records.values()]
    return list(records.values()), [
        failure for failure in failures.values() if failure.title not in done
    ]
