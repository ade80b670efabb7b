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
from bench.results.views import ViewScores
from bench.storage.identity import identity_hash

SCHEMA: Literal[2] = 2


class Accuracy(BaseModel):
    """Accuracy of one set of judged draws under three aggregation rules, with 95 % intervals over
    images (Wilson's; of macro-F1 the bootstrap's).

    Attributes:
        mean: the mean share of right draws; its interval is conservative.
        all_draws: the share of images right in every draw; one wrong draw breaks an image.
        majority: the share of images right in more than half of their draws; a tie counts as wrong.
        macro_f1: mean over classes of the F1 score.
        draws: how many draws an image was judged on.
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
        replayed: under attack, under the attack's own fixed noise; None where it had none.
        constant_accuracy: accuracy of the best constant predictor.
        balanced_accuracy: of the clean predictions.
        largest_predicted_share: share of the most predicted class, clean.
        collapsed: the collapse verdict, and its reason.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    clean: Accuracy
    adversarial: Accuracy
    replayed: Accuracy | None
    constant_accuracy: float
    balanced_accuracy: Estimate
    largest_predicted_share: float
    collapsed: bool
    collapse_reason: str


class Cost(BaseModel):
    """Passes per image and seconds.

    Attributes:
        attack_forwards, attack_backwards: of the attack, exact, mean per image; `max_` for the
            most expensive image.
        judge_forwards: of judging clean and attacked images, per image.
        seconds: wall time of attack and judging, summed over shards.
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
    """Data set and classifier specs as given, from which both can be loaded again."""

    dataset: str
    classifier: str


class UsedImages(TypedDict):
    """How many images were evaluated of how many; `reduced` where not all."""

    n: int
    available: int
    reduced: bool


class Record(BaseModel):
    """The result of one evaluation.

    Attributes:
        schema_version: version of this format.
        id: first 16 hex digits of the SHA-256 of `identity`.
        title: canonical specs to read: defense, attack, gradient, randomness, dataset, classifier,
            threat.
        sources: dataset and classifier specs as given, from which both can be loaded again.
        identity: everything that can change the outcome; not where or how fast it ran.
        given: parameters that the user wrote, by plugin; all others took their defaults.
        access: the data that the defense declared.
        stochastic: whether the defended classifier draws random numbers.
        replay_level: `exact`, `process` or `none`; see `bench.engine.preflight.replay_level`.
        base: id of the undefended base under the same attack; empty for the base itself.
        scale: how many images of how many.
        pool: on how many test images of which kind the defense adapted; None where it did not.
        inference: cost of a prediction and RobustBench's conditions; None where not measured.
        outcomes: what the defense answered, image by image.
        stages: which stage of the attack broke each image; None for an attack without stages.
        targets: the class that each attacked image was to become, encoded as labels are, dashes
            where none; None for an attack that aims at no class in particular.
        views: what the views that the defense wants scored said; None where it names none.
        metrics: everything that follows from the outcomes.
        findings: what a reader of the number must know.
        cost: passes and seconds.
        points: the file of adversarial points; None where they were not kept.
        environment: versions, commit, device, threads, and the hash of the built weights.
        finished: date and time in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = SCHEMA
    id: str
    title: Title
    sources: Sources
    identity: dict[str, Any]
    given: dict[str, list[str]]
    access: list[str]
    stochastic: bool
    replay_level: Literal["exact", "process", "none"]
    base: str
    scale: UsedImages
    pool: PoolUse | None = None
    inference: Inference | None = None
    outcomes: Outcomes
    stages: Stages | None = None
    targets: str | None = None
    views: ViewScores | None = None
    metrics: Metrics
    findings: list[Finding]
    cost: Cost
    points: Points | None
    environment: dict[str, Any]
    finished: str

    @model_validator(mode="after")
    def _is_named_by_its_identity(self) -> Record:
        if self.id != identity_hash(self.identity):
            raise ValueError("the id is not the hash of the identity")
        if self.stages and len(self.stages.broken_by) != self.scale["n"]:
            raise ValueError("stages and images differ in number")
        return self

    @property
    def stem(self) -> str:
        """File name without its ending: readable words, then the evaluation's id."""
        return file_stem(self.title, self.id)


class Failure(BaseModel):
    """An evaluation that crashed: an error on the board, never a number."""

    model_config = ConfigDict(frozen=True)

    id: str
    title: Title
    error: str
    traceback: str
    finished: str


def without_folders(spec: str) -> str:
    """A spec without the folders of its paths: npz:/data/x.npz becomes npz:x.npz, but step=2/255
    stays.
    """
    return re.sub(r"[^:=,]*/([^/:=,]*\.[A-Za-z])", r"\1", spec)


def file_stem(title: Title, identity: str) -> str:
    """A file name from readable words and the id."""
    words = [title["dataset"], title["defense"], title["attack"]]
    cleaned = [re.sub(r"[^A-Za-z0-9.+=-]+", "_", without_folders(word))[:40] for word in words]
    return "--".join([*cleaned, identity])
