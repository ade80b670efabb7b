"""The record of one evaluation, and how its file is named."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator, with_config
from typing_extensions import TypedDict

from bench.defense import PoolUse
from bench.results.arrays import Bools
from bench.results.audit import AuditReport
from bench.results.certificate import Certificate
from bench.results.distances import Distances
from bench.results.estimate import Estimate
from bench.results.extra import ExtraPoints
from bench.results.findings import Finding
from bench.results.inference import Inference
from bench.results.outcomes import Outcomes, Stages, count_ids
from bench.results.targets import check_targets
from bench.results.views import ViewScores
from bench.storage.identity import identity_hash

SCHEMA: Literal[2] = 2

_ROUNDING = 1e-9
_WHOLE = ConfigDict(extra="forbid")

Share = Annotated[float, Field(ge=0, le=1)]
Passes = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1, max_length=10_000)]


class Accuracy(BaseModel):
    """Accuracy of one set of judged draws under three aggregation rules, with 95 % intervals over
    images (Wilson's, on the effective number of images); that of macro-F1 is [0, 1] on few images.

    Attributes:
        mean: the mean share of right draws.
        all_draws: the share of images right in every draw; one wrong draw breaks an image.
        majority: the share of images right in more than half of their draws; a tie counts as wrong.
        macro_f1: mean over classes of the F1 score.
        draws: how many draws an image was judged on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Estimate
    all_draws: Estimate
    majority: Estimate
    macro_f1: Estimate
    draws: int = Field(ge=1)

    @model_validator(mode="after")
    def _are_shares(self) -> Accuracy:
        for name in ("mean", "all_draws", "majority", "macro_f1"):
            check_share(name, getattr(self, name), holds_value=name != "macro_f1")
        return self


def check_share(name: str, share: Estimate, *, holds_value: bool) -> None:
    """Raise `ValueError` unless an estimate is a share.

    Args:
        name: of the share, for the message.
        share: the estimate.
        holds_value: whether its interval must hold its value, as Wilson's does; in older records a
            bootstrap's may not.
    """
    if not 0 <= share.low <= share.high <= 1 or not 0 <= share.value <= 1:
        raise ValueError(f"{name} {share.value} [{share.low}, {share.high}] is no share in [0, 1]")
    inside = share.low - _ROUNDING <= share.value <= share.high + _ROUNDING
    if holds_value and not inside:
        raise ValueError(f"{name} {share.value} is not in [{share.low}, {share.high}]")


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

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(ge=1)
    clean: Accuracy
    adversarial: Accuracy
    replayed: Accuracy | None
    constant_accuracy: Share
    balanced_accuracy: Estimate
    largest_predicted_share: Share
    collapsed: bool
    collapse_reason: str

    @model_validator(mode="after")
    def _are_shares(self) -> Metrics:
        check_share("balanced_accuracy", self.balanced_accuracy, holds_value=False)
        if self.collapsed != bool(self.collapse_reason):
            raise ValueError("collapsed and its reason do not go together")
        return self


class Cost(BaseModel):
    """Passes per image and seconds.

    Attributes:
        attack_forwards, attack_backwards: of the attack, exact, mean per image; `max_` for the
            most expensive image.
        judge_forwards: of judging clean and attacked images, per image.
        check_forwards, check_backwards: of the checks of the run, mean per image; 0 where it
            ran before runs checked themselves.
        seconds: wall time of attack and judging, summed over shards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack_forwards: Passes
    attack_backwards: Passes
    max_attack_forwards: int = Field(ge=0)
    max_attack_backwards: int = Field(ge=0)
    judge_forwards: Passes
    check_forwards: Passes
    check_backwards: Passes
    seconds: Passes

    @model_validator(mode="after")
    def _are_mean_and_most(self) -> Cost:
        for kind in ("forwards", "backwards"):
            mean, most = getattr(self, f"attack_{kind}"), getattr(self, f"max_attack_{kind}")
            if mean > most * (1 + _ROUNDING):
                raise ValueError(f"the mean of attack {kind}, {mean}, is above the most, {most}")
        return self


class Points(BaseModel):
    """The sidecar that holds the adversarial points, float32."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(pattern=r"^[^/\\\x00]{1,255}$")
    sha256: Sha256


@with_config(_WHOLE)
class Title(TypedDict):
    """Canonical specs to read."""

    defense: Text
    attack: Text
    gradient: Text
    randomness: Text
    dataset: Text
    classifier: Text
    threat: Text
    n: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,17}$")]
    seed: Annotated[str, Field(pattern=r"^-?[0-9]{1,20}$")]


@with_config(_WHOLE)
class Sources(TypedDict):
    """Data set and classifier specs as given, from which both can be loaded again."""

    dataset: Text
    classifier: Text


class _Part(BaseModel):
    """A part of an identity: what every reader relies on; the rest is its plugin's."""

    model_config = ConfigDict(extra="allow")


class _Plugin(_Part):
    name: Text


class _Dataset(_Part):
    name: str
    sha256: str
    n: int = Field(ge=1)


class _Fingerprint(_Part):
    sha256: str


class _Threat(_Part):
    norm: Text
    eps: Passes


class _Seeds(_Part):
    build: int
    attack: int


class Identity(_Part):
    """What an identity must have: more may be in it, less may not."""

    protocol: Any
    defense: _Plugin
    attack: _Plugin
    gradient: Text
    randomness: Text
    dataset: _Dataset
    classifier: _Fingerprint
    threat: _Threat
    seeds: _Seeds
    judged_draws: int = Field(ge=1)
    data: dict[str, str]


class Environment(_Part):
    """What an environment must have."""

    versions: dict[str, str]


@with_config(_WHOLE)
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
        distances: how far from each image the nearest point lies that the attack found to break it,
            in the ball or not; None for an attack that does not look for it.
        views: what the views that the defense wants scored said; None where it names none.
        metrics: everything that follows from the outcomes.
        findings: what a reader of the number must know.
        extra: points found beside the attack's, which the worst case counts as attacks.
        cost: passes and seconds.
        points: the file of adversarial points; None where they were not kept.
        environment: versions, commit, device, threads, and the hash of the built weights.
        finished: date and time in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = SCHEMA
    id: Id
    title: Title
    sources: Sources
    identity: dict[str, Any]
    given: dict[str, list[str]]
    access: list[str]
    stochastic: bool
    replay_level: Literal["exact", "process", "none"]
    base: str = Field(pattern=r"^([0-9a-f]{16})?$")
    scale: UsedImages
    pool: PoolUse | None = None
    inference: Inference | None = None
    outcomes: Outcomes
    stages: Stages | None = None
    targets: str | None = None
    distances: Distances | None = None
    views: ViewScores | None = None
    metrics: Metrics
    findings: list[Finding]
    extra: list[ExtraPoints] = Field(default_factory=list)
    cost: Cost
    points: Points | None
    environment: dict[str, Any]
    finished: str

    _audit: AuditReport | None = PrivateAttr(default=None)
    _certificate: Certificate | None = PrivateAttr(default=None)

    @property
    def audit(self) -> AuditReport | None:
        """The audit that lies beside the record's file, where it was read with one."""
        return self._audit

    def with_audit(self, report: AuditReport | None) -> Record:
        """The same record with its audit, which is no part of its file.

        Raises:
            ValueError: where it is the audit of another record.
        """
        if report is not None:
            report.check(self.id, self.outcomes)
        copy = self.model_copy()
        copy._audit = report
        return copy

    @property
    def certificate(self) -> Certificate | None:
        """The certificate that lies beside the record's file, where it was read with one."""
        return self._certificate

    def with_certificate(self, certificate: Certificate) -> Record:
        """The same record with its certificate, which is no part of its file.

        Raises:
            ValueError: where it is the certificate of another record.
            Contradiction: where the record's attack broke a certified image.
        """
        certificate.check(self.id, self.outcomes)
        copy = self.model_copy()
        copy._certificate = certificate
        return copy

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Record:
        if self.id != identity_hash(self.identity):
            raise ValueError("the id is not the hash of the identity")
        identity = Identity.model_validate(self.identity, strict=True)
        Environment.model_validate(self.environment, strict=True)
        datetime.fromisoformat(self.finished)
        self._check_numbers(identity)
        self._check_sizes()
        return self

    def _check_numbers(self, identity: Identity) -> None:
        """Raise `ValueError` where one number is said in two places and they differ."""
        n, scale = len(self.outcomes.true_labels()), self.scale
        counts = {
            "scale": scale["n"],
            "title": int(self.title["n"]),
            "metrics": self.metrics.n,
            "identity": identity.dataset.n,
        }
        for where, count in counts.items():
            if count != n:
                raise ValueError(f"{where} says {count} images, the outcomes {n}")
        if scale["available"] < n or scale["reduced"] != (n < scale["available"]):
            raise ValueError("the scale does not go together")
        if int(self.title["seed"]) != identity.seeds.attack:
            raise ValueError("title and identity differ in the seed")
        draws = len(self.outcomes.clean)
        told = {identity.judged_draws, self.metrics.clean.draws, self.metrics.adversarial.draws}
        replayed = self.metrics.replayed.draws if self.metrics.replayed else 0
        if told != {draws} or replayed != len(self.outcomes.replayed):
            raise ValueError("outcomes, metrics and identity differ in the number of draws")

    def _check_sizes(self) -> None:
        """Raise `ValueError` where stages, views or extra points are not of these images."""
        n = self.scale["n"]
        if self.stages and len(self.stages.broken_by) != n:
            raise ValueError("stages and images differ in number")
        if self.targets is not None:
            check_targets(self.targets, self.outcomes)
        if self.distances and len(self.distances.values) != n:
            raise ValueError("distances and images differ in number")
        if self.views:
            self.views.check(n, self.outcomes.num_classes)
        if len({extra.name for extra in self.extra}) != len(self.extra):
            raise ValueError("two sets of extra points have one name")
        for extra in self.extra:
            extra.check(self.outcomes)
        for finding in self.findings:
            if finding.images and count_ids(finding.images) > n:
                raise ValueError(f"finding {finding.name!r} speaks of more images than there are")

    def extra_correct(self) -> dict[str, Bools]:
        """By name, whether the answers on extra points are right: bool (n, draws), the row's own
        verdict where an image has no such point. Those that an audit found are among them.
        """
        audited = self._audit.extra if self._audit else []
        return {extra.name: extra.correct(self.outcomes) for extra in [*self.extra, *audited]}

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


_FOLDERS = re.compile(
    r"(?:(?<=[:=,\"])(?:~|\.{1,2})?/|(?<=\bimagefolder:)|(?<=\bimagenet:))[^:=,\"]*?([^/:=,\"]+)/*"
    r"(?=[,\")]|$)"
)


def without_folders(spec: str) -> str:
    """A spec without the folders of its paths: npz:/data/x.npz becomes npz:x.npz, but step=2/255
    stays. So do a hub's names, such as hf:organisation/model.
    """
    spec = re.sub(r"[^:=,]*/([^/:=,]*\.[A-Za-z])", r"\1", spec)
    # A folder has no ending: it is told by how its path begins, or by who takes a folder.
    return _FOLDERS.sub(r"\1", spec)


def file_stem(title: Title, identity: str) -> str:
    """A file name from readable words and the id."""
    words = [title["dataset"], title["defense"], title["attack"]]
    cleaned = [re.sub(r"[^A-Za-z0-9.+=-]+", "_", without_folders(word))[:40] for word in words]
    return "--".join([*cleaned, identity])
