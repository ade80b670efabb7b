"""Records: one JSON file a cell, written whole or not at all, and the store that holds them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from typing_extensions import TypedDict

from bench.audit import Finding
from bench.defense import PoolUse
from bench.errors import BadInput
from bench.inference import Inference
from bench.outcomes import Outcomes, Stages
from bench.scores import Scores

SCHEMA: Literal[1] = 1


class Share(BaseModel):
    """A share of images with its 95 % interval, all in [0, 1]."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Judged(BaseModel):
    """One set of images judged under all laws: mean over draws, right in every draw, right in most draws."""

    model_config = ConfigDict(frozen=True)

    mean: Share
    all_draws: Share
    majority: Share
    macro_f1: Share
    draws: int


class Metrics(BaseModel):
    """Everything that follows from the outcomes.

    Attributes:
        clean: the null attack.
        adversarial: under attack, fresh draws.
        replayed: under attack, on the attack's own tapes; None where it had none.
        constant_accuracy: accuracy of the best constant predictor.
        balanced_accuracy: of the clean predictions.
        largest_predicted_share: share of the most predicted class, clean.
        collapsed: the collapse verdict, and its reason.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    clean: Judged
    adversarial: Judged
    replayed: Judged | None
    constant_accuracy: float
    balanced_accuracy: Share
    largest_predicted_share: float
    collapsed: bool
    collapse_reason: str


class Cost(BaseModel):
    """Passes per image and seconds.

    Attributes:
        attack_forwards, attack_backwards: of the attack, exact, mean per image; `max_` for the dearest image.
        judge_forwards: of judging clean and attacked images, per image.
        seconds: wall time of attack and judging, summed over parts.
    """

    model_config = ConfigDict(frozen=True)

    attack_forwards: float
    attack_backwards: float
    max_attack_forwards: int
    max_attack_backwards: int
    judge_forwards: float
    seconds: float


class Points(BaseModel):
    """The sidecar that holds the adversarial points, float32."""

    model_config = ConfigDict(frozen=True)

    file: str
    sha256: str


class Title(TypedDict):
    """Canonical specs to read."""

    defense: str
    attack: str
    gradient: str
    randomness: str
    dataset: str
    classifier: str
    threat: str
    n: str
    seed: str


class Sources(TypedDict):
    """Specs as given, with which data and classifier can be loaded again."""

    dataset: str
    classifier: str


class Scale(TypedDict):
    """How many images of how many; `reduced` where not all were used."""

    n: int
    available: int
    reduced: bool


class Record(BaseModel):
    """The result of one cell. `identity` is what was hashed into `cell`; nothing in it depends on where or how fast it ran.

    Attributes:
        schema_version: version of this format.
        cell: first 16 hex digits of the identity's SHA-256.
        title: canonical specs to read: defense, attack, gradient, randomness, dataset, classifier, threat.
        sources: dataset and classifier specs as given, with which the objects can be rebuilt.
        identity: everything that can change the outcome.
        given: parameters that the user wrote, by plugin; all others took their defaults.
        access: the data that the defense declared.
        stochastic: whether the defended classifier draws random numbers.
        replay_level: `exact`, `process` or `none`; see `bench.preflight.replay_level`.
        base: cell id of the undefended base under the same attack; empty for the base itself.
        scale: how many images of how many.
        transductive, pool: whether the defense adapted on test images, and on how many of which kind.
        inference: cost of a prediction and RobustBench's conditions; None in records of before they were measured.
        stages: which stage of the attack broke each image; None for an attack without stages.
        scores: what the views that the defense wants scored said; None where it names none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA
    cell: str
    title: Title
    sources: Sources
    identity: dict[str, Any]
    given: dict[str, list[str]]
    access: list[str]
    stochastic: bool
    replay_level: Literal["exact", "process", "none"]
    base: str
    scale: Scale
    transductive: bool = False
    pool: PoolUse | None = None
    inference: Inference | None = None
    outcomes: Outcomes
    stages: Stages | None = None
    scores: Scores | None = None
    metrics: Metrics
    findings: list[Finding]
    cost: Cost
    points: Points | None
    environment: dict[str, Any]
    finished: str

    @model_validator(mode="after")
    def _is_named_by_its_identity(self) -> Record:
        if self.cell != cell_id(self.identity):
            raise ValueError("the cell id is not the hash of the identity")
        if self.stages and len(self.stages.broken_by) != self.scale["n"]:
            raise ValueError("stages and images differ in number")
        return self

    @property
    def stem(self) -> str:
        """File name without its ending: readable words, then the cell id."""
        return file_stem(self.title, self.cell)


class Failure(BaseModel):
    """A cell that crashed: an error on the board, never a number."""

    model_config = ConfigDict(frozen=True)

    cell: str
    title: Title
    error: str
    traceback: str
    finished: str


def cell_id(identity: dict[str, Any]) -> str:
    """Hash of an identity: its JSON with sorted keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def without_folders(spec: str) -> str:
    """A spec with of each path only the file's name: npz:/data/x.npz becomes npz:x.npz, but step=2/255 stays."""
    return re.sub(r"[^:=,]*/([^/:=,]*\.[A-Za-z])", r"\1", spec)


def file_stem(title: Title, cell: str) -> str:
    """A file name from readable words and a cell id."""
    words = [title["dataset"], title["defense"], title["attack"]]
    cleaned = [re.sub(r"[^A-Za-z0-9.+=-]+", "_", without_folders(word))[:40] for word in words]
    return "--".join([*cleaned, cell])


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing, even after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Store:
    """A folder of records. Writers cannot harm each other: a file is named by what it holds and appears whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check_writable(self) -> None:
        """Raise `BadInput` where records cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / f".probe-{os.getpid()}", b"")
            (self.folder / f".probe-{os.getpid()}").unlink()
        except OSError as error:
            raise BadInput(f"cannot write to {self.folder} ({error.strerror}): give another folder with --out") from error

    def find(self, cell: str) -> Record | None:
        """The record of a cell, if there is one that can be read; a damaged one is as good as none and will be replaced."""
        for path in self.folder.glob(f"*--{cell}.json"):
            try:
                return read_record(path)
            except BadInput:
                continue
        return None

    def save(self, record: Record) -> Path:
        """Write a record and drop an earlier failure of the same cell."""
        path = self.folder / f"{record.stem}.json"
        write_whole(path, _json(record))
        for failure in self.folder.glob(f"*--{record.cell}.error.json"):
            failure.unlink(missing_ok=True)
        return path

    def save_failure(self, failure: Failure) -> Path:
        """Write what went wrong."""
        path = self.folder / f"{file_stem(failure.title, failure.cell)}.error.json"
        write_whole(path, _json(failure))
        return path

    def work(self, cell: str) -> Path:
        """Folder of a cell's unfinished work."""
        return self.folder / ".work" / cell


def _json(model: BaseModel) -> bytes:
    return (json.dumps(model.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()


def read_record(path: Path) -> Record:
    """Read one record. Raises `BadInput` where the file is none."""
    return _read(path, Record)


def is_failure(path: Path) -> bool:
    """Whether a file of the store tells of a crash, by its name."""
    return path.name.endswith(".error.json")


def read_failure(path: Path) -> Failure:
    """Read what went wrong in a cell. Raises `BadInput` where the file is no failure."""
    return _read(path, Failure)


M = TypeVar("M", bound=BaseModel)


def _read(path: Path, kind: type[M]) -> M:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read the record {path} ({error.strerror}): check the path") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInput(f"{path} is no record of schema {SCHEMA} ({where}: {first['msg']}): run the cell again") from None


def read(path: Path) -> Record | Failure:
    """The record, or the failure, in a file."""
    return read_failure(path) if is_failure(path) else read_record(path)


def read_folder(folder: Path) -> Iterator[Record | Failure]:
    """All records and failures below a folder, sorted by path; hidden folders are passed over."""
    if not folder.is_dir():
        raise BadInput(f"no such folder: {folder}: run some cells first, or name the folder that holds records")
    for path in sorted(folder.rglob("*--*.json")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        yield read(path)
