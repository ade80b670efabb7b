"""The record of one evaluation, and how its file is named."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import TypedDict

from bench.defense import PoolUse
from bench.results.estimate import Estimate
from bench.results.findings import Finding
from bench.results.inference import Inference
from bench.results.outcomes import Outcomes, Stages
from bench.results.views import Scores
from bench.storage.identity import identity_hash

SCHEMA: Literal[1] = 1


class Judged(BaseModel):
    """One set of images judged under all laws: mean over draws, right in every draw, right in most
    draws.
    """

    model_config = ConfigDict(frozen=True)

    mean: Estimate
    all_draws: Estimate
    majority: Estimate
    macro_f1: Estimate
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
    balanced_accuracy: Estimate
    largest_predicted_share: float
    collapsed: bool
    collapse_reason: str


class Cost(BaseModel):
    """Passes per image and seconds.

    Attributes:
        attack_forwards, attack_backwards: of the attack, exact, mean per image; `max_` for the
            dearest image.
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
    """The result of one cell. `identity` is what was hashed into `cell`; nothing in it depends on
    where or how fast it ran.

    Attributes:
        schema_version: version of this format.
        cell: first 16 hex digits of the identity's SHA-256.
        title: canonical specs to read: defense, attack, gradient, randomness, dataset, classifier,
            threat.
        sources: dataset and classifier specs as given, with which the objects can be rebuilt.
        identity: everything that can change the outcome.
        given: parameters that the user wrote, by plugin; all others took their defaults.
        access: the data that the defense declared.
        stochastic: whether the defended classifier draws random numbers.
        replay_level: `exact`, `process` or `none`; see `bench.engine.preflight.replay_level`.
        base: cell id of the undefended base under the same attack; empty for the base itself.
        scale: how many images of how many.
        transductive, pool: whether the defense adapted on test images, and on how many of which
            kind.
        inference: cost of a prediction and RobustBench's conditions; None in records of before they
            were measured.
        stages: which stage of the attack broke each image; None for an attack without stages.
        scores: what the views that the defense wants scored said; None where it names none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA
    evaluation: str
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
        if self.evaluation != identity_hash(self.identity):
            raise ValueError("the cell id is not the hash of the identity")
        if self.stages and len(self.stages.broken_by) != self.scale["n"]:
            raise ValueError("stages and images differ in number")
        return self

    @property
    def stem(self) -> str:
        """File name without its ending: readable words, then the cell id."""
        return file_stem(self.title, self.evaluation)


class Failure(BaseModel):
    """A cell that crashed: an error on the board, never a number."""

    model_config = ConfigDict(frozen=True)

    evaluation: str
    title: Title
    error: str
    traceback: str
    finished: str


def without_folders(spec: str) -> str:
    """A spec with of each path only the file's name: npz:/data/x.npz becomes npz:x.npz, but
    step=2/255 stays.
    """
    return re.sub(r"[^:=,]*/([^/:=,]*\.[A-Za-z])", r"\1", spec)


def file_stem(title: Title, evaluation: str) -> str:
    """A file name from readable words and a cell id."""
    words = [title["dataset"], title["defense"], title["attack"]]
    cleaned = [re.sub(r"[^A-Za-z0-9.+=-]+", "_", without_folders(word))[:40] for word in words]
    return "--".join([*cleaned, evaluation])
