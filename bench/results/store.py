"""The store: a folder of records, one JSON file each, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from bench.errors import BadInput
from bench.results.audit import AuditReport
from bench.results.certificate import Certificate
from bench.results.record import SCHEMA, Failure, Record, file_stem
from bench.storage.files import check_folder, make_folder, write_whole, writing
from bench.storage.place import Place, clear_work

MAX_BYTES = 1 << 28
"""No record is larger: a million images of 36 classes under 20 draws take 41 MB."""


class UnknownSchema(BadInput):
    """A record of a schema that is not ours: it is neither read nor overwritten."""


class Store:
    """A folder of records. Writers cannot harm each other: a file is named by what it holds and
    appears whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = Listing(folder)

    def check_writable(self) -> None:
        """Raise `BadInput` where records cannot be written."""
        try:
            check_folder(self.folder)
        except OSError as error:
            raise BadInput(
                f"cannot write to {self.folder} ({error.strerror}): give another folder with --out"
            ) from error

    def find(self, evaluation: str) -> Record | None:
        """The record of an evaluation, by its id; None where there is none. A damaged one counts as
        none, and will be replaced.

        Raises `UnknownSchema` where the file is of another schema.
        """
        for name in self._names.of(evaluation):
            path = self.folder / name
            try:
                record = _read_as(Record, path)
            except UnknownSchema:
                raise
            except BadInput:
                continue
            with contextlib.suppress(BadInput):
                return _with_what_lies_beside(record, path)
            return record
        return None

    def save(self, record: Record) -> Path:
        """Write a record and drop an earlier failure of the same evaluation."""
        path = self.write(f"{record.stem}.json", to_json(record), record.id)
        for failure in self.folder.glob(f"*--{record.id}.error.json"):
            failure.unlink(missing_ok=True)
        self.clear(record.id, shards=False)
        return path

    def save_audit(self, report: AuditReport, beside: Path) -> Path:
        """Write an audit beside the file of its record, in place of an earlier one."""
        path = self.write(audit_path(beside).name, to_json(report), report.record)
        self.clear(report.record, shards=False)
        return path

    def save_certificate(self, certificate: Certificate, record: Record) -> Path:
        """Write the certificate of a record beside it, in place of an earlier one."""
        path = self.write(f"{record.stem}{_CERTIFICATE}", to_json(certificate), record.id)
        self.clear(record.id, shards=False)
        return path

    def save_failure(self, failure: Failure) -> Path:
        name = f"{file_stem(failure.title, failure.id)}.error.json"
        path = self.write(name, to_json(failure), failure.id)
        self.clear(failure.id, shards=False)
        return path

    def write(self, name: str, data: bytes, evaluation: str) -> Path:
        """Write a file of an evaluation; it grows where `clear` clears it away."""
        path = self.folder / name
        write_whole(path, data, scratch=self.work(evaluation))
        return path

    def work(self, evaluation: str) -> Path:
        """Folder of an evaluation's unfinished work."""
        return self.folder / ".work" / evaluation

    def place(self, evaluation: str, name: str) -> Place:
        """Where shards of an unfinished evaluation lie, in a folder of this name."""
        return Place(self.work(evaluation) / name)

    def read(self, name: str) -> bytes:
        """A file that lies beside the records. Raises `OSError` where it cannot be read."""
        return (self.folder / name).read_bytes()

    def begin(self, evaluation: str) -> bool:
        """Make that folder; False where it was there, since somebody has begun."""
        with writing(self.folder):
            make_folder(self.folder / ".work", parents=True)
            try:
                self.work(evaluation).mkdir()
            except FileExistsError:
                return False
        return True

    def clear(self, evaluation: str, *, shards: bool = True) -> None:
        """Drop an evaluation's unfinished work, or its folder alone where no shards are in it."""
        if shards:
            clear_work(self.work(evaluation))
            return
        with contextlib.suppress(OSError):
            self.work(evaluation).rmdir()

    def sweep(self, evaluations: Iterable[str]) -> None:
        """Drop what workers that were ended left of evaluations that are finished."""
        for evaluation in evaluations:
            if self.work(evaluation).exists() and self.find(evaluation) is not None:
                self.clear(evaluation)

    def drop_empty(self) -> None:
        """Remove the folder where nothing is in it."""
        with contextlib.suppress(OSError):
            (self.folder / ".work").rmdir()
        with contextlib.suppress(OSError):
            self.folder.rmdir()


class Listing:
    """The names of a folder's records by their id, read again when the folder has changed.

    Among a hundred thousand records, to look for one by its name takes a tenth of a second; a suite
    asks twice a shard.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed, self._since = -1, 0.0
        self._names: dict[str, list[str]] | None = None

    def of(self, evaluation: str) -> list[str]:
        """The names of the records of this id."""
        try:
            changed = os.stat(self._folder).st_mtime_ns
        except OSError:
            return []
        now = time.monotonic()
        if changed != self._changed:
            self._changed, self._since, self._names = changed, now, None
        if self._names is not None:
            return self._names.get(evaluation, [])
        names = self._read()
        # A file that comes within one tick of the file system's clock leaves the time as it was.
        if now - self._since > _SETTLED_SECONDS:
            self._names = names
        return names.get(evaluation, [])

    def _read(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in sorted(os.listdir(self._folder)):
            _, dashes, rest = name.rpartition("--")
            if dashes and rest.endswith(".json"):
                names.setdefault(rest.removesuffix(".json"), []).append(name)
        return names


_SETTLED_SECONDS = 2.0


def to_json(model: BaseModel) -> bytes:
    """A record or failure as it is written to disk."""
    return (json.dumps(model.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()


def read_record(path: Path) -> Record:
    """A record, with the audit and the certificate that lie beside it. Raises `BadInput` where the
    file is no record, or what lies beside it does not belong to it.
    """
    return _with_what_lies_beside(_read_as(Record, path), path)


def read_bare_record(path: Path) -> Record:
    """A record without what lies beside it, which may be damaged. Raises `BadInput` where the file
    is no record.
    """
    return _read_as(Record, path)


_AUDIT, _CERTIFICATE = ".audit.json", ".certificate.json"


def audit_path(path: Path) -> Path:
    """Where the audit of a record's file lies."""
    return path.with_name(path.name.removesuffix(".json") + _AUDIT)


def certificate_path(path: Path) -> Path:
    """Where the certificate of a record's file lies."""
    return path.with_name(path.name.removesuffix(".json") + _CERTIFICATE)


def lies_beside(path: Path) -> bool:
    """Whether a file of the store is an audit or a certificate of a record, by its name."""
    return path.name.endswith((_AUDIT, _CERTIFICATE))


def _with_what_lies_beside(record: Record, path: Path) -> Record:
    beside = audit_path(path)
    try:
        if beside.is_file():
            record = record.with_audit(_read_as(AuditReport, beside))
        beside = certificate_path(path)
        if beside.is_file():
            record = record.with_certificate(_read_as(Certificate, beside))
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{beside} does not fit the record beside it ({error}): {_again(beside)}"
        ) from None
    return record


def _again(path: Path) -> str:
    command = "audit" if path.name.endswith(_AUDIT) else "certify"
    return f"remove it, or run `bench {command}` again"


def is_failure(path: Path) -> bool:
    """Whether a file of the store is the report of a crash, by its name."""
    return path.name.endswith(".error.json")


def read_failure(path: Path) -> Failure:
    """Raises `BadInput` where the file is no failure."""
    return _read_as(Failure, path)


M = TypeVar("M", bound=BaseModel)


def _read_as(kind: type[M], path: Path) -> M:
    content = _content(path)
    try:
        return kind.model_validate_json(content, strict=True)
    except ValidationError as error:
        if kind is Record:
            check_schema(path, content)
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        if lies_beside(path):
            what = "audit" if kind is AuditReport else "certificate"
            raise BadInput(
                f"{path} is no {what} ({where[:200]}: {first['msg']}): {_again(path)}"
            ) from None
        raise BadInput(
            f"{path} is no record of schema {SCHEMA} ({where[:200]}: {first['msg']}): run the "
            "evaluation again"
        ) from None


def _content(path: Path) -> bytes:
    """The bytes of a plain file of bounded size: a device has no end, a pipe no beginning."""
    try:
        with open(path, "rb", opener=_opened) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise BadInput(f"cannot read the record {path} (no plain file): check the path")
            if state.st_size > MAX_BYTES:
                raise BadInput(f"{path} holds {state.st_size} bytes: no record is that large")
            return file.read(MAX_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        shown = str(path) if len(str(path)) < 300 else f"{str(path)[:300]}..."
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot read the record {shown} ({reason}): check the path") from error


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def check_schema(path: Path, content: bytes, schema: int = SCHEMA) -> None:
    """Raise `UnknownSchema` where a record says that it is of another one."""
    try:
        said = json.loads(content)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if said != schema or isinstance(said, bool | float):
        raise UnknownSchema(
            f"{path} is no record of schema {schema} but of {str(said)[:40]!r}, which this version "
            "neither reads nor overwrites: install the version that wrote it, or move it away"
        )


def read(path: Path) -> Record | Failure:
    return read_failure(path) if is_failure(path) else read_record(path)


def read_folder(folder: Path) -> Iterator[Record | Failure]:
    """All records and failures below a folder, sorted by path; hidden folders are passed over."""
    if not os.path.isdir(folder):
        raise BadInput(
            f"no such folder: {str(folder)[:300]}: run some evaluations first, or name the folder "
            "that holds records"
        )
    yield from map(read, files_below(folder))


def files_below(folder: Path) -> list[Path]:
    """The files of records and failures below a folder, sorted; hidden folders, audits and
    certificates are passed over.
    """
    return [
        path
        for path in sorted(_below(folder))
        if fnmatch(path.name, "*--*.json") and not lies_beside(path)
    ]


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones, also where another process drops folders."""
    for within, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(within, name) for name in names if not name.startswith("."))


def read_all(places: Iterable[Path]) -> tuple[list[Record], list[Failure]]:
    """All records and failures in these files and below these folders, each evaluation once. A
    failure of an evaluation that also has a record is left out.
    """
    records: dict[str, Record] = {}
    failures: dict[str, Failure] = {}
    for place in places:
        for result in [read(place)] if os.path.isfile(place) else read_folder(place):
            if isinstance(result, Record):
                records.setdefault(result.id, result)
            else:
                failures.setdefault(result.id, result)
    done = [record.title for record in records.values()]
    return list(records.values()), [
        failure for failure in failures.values() if failure.title not in done
    ]
