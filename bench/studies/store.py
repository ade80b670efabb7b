"""Runs a study and keeps what came out: one folder with a CSV file a table, a PNG file a figure and
`study.json`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from tabulate import tabulate

from bench.engine.environment import environment
from bench.engine.evaluation import PROTOCOL
from bench.engine.execution import exact_float32, read_execution
from bench.engine.request import Request, option_name
from bench.errors import BadInput
from bench.plugins.create import STUDIES, Named, create
from bench.report import escape
from bench.results.record import without_folders
from bench.results.store import Store, check_schema
from bench.spec import parse
from bench.storage.files import write_folder
from bench.storage.identity import identity_hash
from bench.studies.plots import png
from bench.studies.study import IMAGES, Study, StudyResult, StudySetting

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA: Literal[2] = 2

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class StudyRecord(BaseModel):
    """`study.json`: all of a result but its tables and figures.

    Attributes:
        schema_version: version of this format.
        id: first 16 hex digits of the identity's SHA-256.
        study: canonical spec.
        identity: everything that can change the outcome.
        given: parameters that the user wrote; all others took their defaults.
        setup: what was studied, to read; empty for a study without images.
        sentence, held, scale: as the study returned them.
        tables, figures: SHA-256 of each file beside this one; the first table is the main one.
        environment: versions, commit, device.
        seconds: wall time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = SCHEMA
    id: str
    study: str
    identity: dict[str, Any]
    given: list[str]
    setup: dict[str, str]
    sentence: str
    held: bool | None
    scale: str
    tables: dict[str, str]
    figures: dict[str, str]
    environment: dict[str, Any]
    seconds: float
    finished: str

    @model_validator(mode="after")
    def _is_named_by_its_identity(self) -> StudyRecord:
        if self.id != identity_hash(self.identity):
            raise ValueError("the id is not the hash of the identity")
        return self


@dataclass(frozen=True)
class Stored:
    """A result on disk.

    Attributes:
        folder: where its files are.
        computed: whether it was computed now, and not read from an earlier run.
    """

    record: StudyRecord
    folder: Path
    computed: bool

    def render(self) -> str:
        """The sentence above the main table."""
        paragraphs = [self.record.sentence]
        for name in list(self.record.tables)[:1]:
            paragraphs.append(_text(_read_table(self.folder / name)))
        return "\n\n".join(paragraphs)


def run_study(
    text: str,
    request: Request,
    out: Path,
    *,
    device: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Callable[[str], None] = print,
) -> Stored:
    """Run a study, or read its result where it lies below `out`.

    Args:
        text: the study's spec.
        request: dataset, classifier, norm, eps, n and seed as far as they were given.
        device, batch_size, workers: None where not given.
        progress: called with a few words at each step.

    Raises `BadInput` where the study does not exist or does not use what was given; nothing is
    written then.
    """
    named: Named[Study[Any]] = create(STUDIES, parse(text))
    setting = _setting(named, request, device, batch_size, workers)
    setting = replace(setting, progress=progress)
    identity = identity_of(named, setting)
    key = identity_hash(identity)
    stored = find(out, key)
    if stored is None:
        Store(out).check_writable()
        began = time.monotonic()
        with exact_float32(setting.device):
            result = named.plugin.run(setting)
        stored = save(out, named, setting, identity, result, time.monotonic() - began)
    for left in out.glob(_unfinished(key, "*")):
        # Of a process that was killed.
        shutil.rmtree(left, ignore_errors=True)
    return stored


def _unfinished(study: str, which: str) -> str:
    """Where a result grows before it takes its name."""
    return f".unfinished-{study}-{which}"


def _setting(
    named: Named[Study[Any]],
    request: Request,
    device: str | None,
    batch_size: int | None,
    workers: int | None,
) -> StudySetting:
    uses = named.plugin.uses
    given = {option_name(name, Request.model_fields[name]) for name in request.model_fields_set}
    given |= {
        name
        for name, value in (("device", device), ("batch_size", batch_size), ("workers", workers))
        if value is not None
    }
    for key in sorted(given - uses):
        known = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(uses)) or "no option"
        raise BadInput(
            f"study {named.name!r} does not use --{key.replace('_', '-')}: leave it out (it uses "
            f"{known})"
        )
    execution = read_execution(device or ("auto" if "device" in uses else "cpu"), batch_size)
    return StudySetting(
        request,
        named.plugin.default_n,
        execution.device,
        execution.batch_size,
        workers=workers,
    )


def identity_of(named: Named[Study[Any]], setting: StudySetting) -> dict[str, Any]:
    """Everything that can change the outcome, and nothing else; loads the evaluation setup of a
    study that has one.
    """
    identity: dict[str, Any] = {
        "protocol": PROTOCOL,
        "study": named.identity,
        "plugins": named.plugin.plugins(),
        "seeds": {"root": setting.seed},
    }
    if named.plugin.uses & IMAGES:
        identity["setup"] = _setup_identity(setting)
    sources = named.plugin.sources(setting)
    return {**identity, "sources": sources} if sources else identity


def _setup_identity(setting: StudySetting) -> dict[str, Any]:
    setup = setting.setup
    return {
        "dataset": {
            "name": setup.dataset.name,
            "sha256": setup.images.sha256,
            "n": len(setup.images),
        },
        "classifier": {"sha256": setup.classifier_sha},
        "threat": {"norm": setup.threat.norm, "eps": setup.threat.eps},
    }


def _title(named: Named[Study[Any]], setting: StudySetting) -> dict[str, str]:
    if not named.plugin.uses & IMAGES:
        return {}
    setup = setting.setup
    return {
        "dataset": setup.dataset.spec,
        "classifier": setup.classifier_spec,
        "threat": str(setup.threat),
        "n": f"{len(setup.images)} of {setup.available}",
    }


# Files --------------------------------------------------------------------------------------------


def find(out: Path, study: str) -> Stored | None:
    """The result with this id, if all its files are there and as they were written; a damaged one
    is as good as none.
    """
    for path in out.glob(f"*--{study}/study.json"):
        try:
            record = StudyRecord.model_validate_json(path.read_bytes())
            files = {**record.tables, **record.figures}
            if record.id == study and all(
                _sha256((path.parent / name).read_bytes()) == sha for name, sha in files.items()
            ):
                return Stored(record, path.parent, computed=False)
        except ValidationError:
            check_schema(path, path.read_bytes(), SCHEMA)
        except OSError:
            continue
    return None


def save(
    out: Path,
    named: Named[Study[Any]],
    setting: StudySetting,
    identity: dict[str, Any],
    result: StudyResult,
    seconds: float,
) -> Stored:
    """Write a result's folder, whole or not at all."""
    tables = {f"{name}.csv": _csv(table) for name, table in _checked(result.tables).items()}
    figures = {f"{name}.png": png(figure) for name, figure in _checked(result.figures).items()}
    title = _title(named, setting)
    record = StudyRecord(
        id=identity_hash(identity),
        study=named.spec,
        identity=identity,
        given=list(named.given),
        setup=title,
        sentence=result.sentence,
        held=result.held,
        scale=result.scale,
        tables={name: _sha256(data) for name, data in tables.items()},
        figures={name: _sha256(data) for name, data in figures.items()},
        environment=environment(setting.device),
        seconds=round(seconds, 1),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    words = [without_folders(word) for word in (*([title["dataset"]] if title else []), named.spec)]
    stem = "--".join([*(re.sub(r"[^A-Za-z0-9.+=-]+", "_", word)[:60] for word in words), record.id])
    about = (record.model_dump_json(indent=1) + "\n").encode()
    if find(out, record.id) is None:
        # What is in the way is incomplete.
        shutil.rmtree(out / stem, ignore_errors=True)
    scratch = out / _unfinished(record.id, uuid.uuid4().hex)
    try:
        write_folder(out / stem, {**tables, **figures, "study.json": about}, scratch)
    except OSError:
        # Another process that ran the same study was faster.
        stored = find(out, record.id)
        if stored is None:
            raise
        return stored
    return Stored(record, out / stem, computed=True)


def _checked(named: dict[str, Any]) -> dict[str, Any]:
    for name in named:
        if not _NAME.fullmatch(name):
            raise RuntimeError(
                f"{name!r} names a table or figure: use small letters, digits and hyphens"
            )
    return named


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _csv(table: DataFrame) -> bytes:
    return table.map(escape.csv).to_csv(index=False, lineterminator="\n").encode()


def _read_table(path: Path) -> DataFrame:
    import pandas

    return pandas.read_csv(path)


def _text(table: DataFrame) -> str:
    """A table in Markdown; numbers with four digits, empty where there is none."""
    rows = [
        ["" if value != value else value for value in row] for row in table.itertuples(index=False)
    ]
    return tabulate(rows, headers=list(table.columns), tablefmt="github", floatfmt=".4g")
