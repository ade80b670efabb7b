"""What an audit says of a record: its checks as data, the verdict that follows, extra points."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from bench.errors import BadInput
from bench.results.extra import ExtraPoints
from bench.results.outcomes import Outcomes, count_ids, decode_ids, is_folded

SCHEMA: Literal[1] = 1

Profile = Literal["quick", "standard", "full"]
CheckVerdict = Literal["fail", "warn", "pass", "na"]
Verdict = Literal["masking-evidence", "inconclusive", "no-evidence-found"]

PROFILES: tuple[Profile, ...] = ("quick", "standard", "full")

_Passes = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AuditCheck(BaseModel):
    """One check of an audit.

    Attributes:
        id: short and fixed, such as `S6`; the name of a finding for checks of the run itself.
        name: what it asks, in a few words.
        verdict: `fail` where the number is not to be believed, `warn` where it is to be doubted,
            `pass`, or `na` where the check does not apply.
        message: what was seen, in one sentence.
        value: what was measured.
        threshold: the number beyond which the check speaks.
        images: ids of the images that it speaks of, runs folded; empty where none in particular.
        advice: what to do.
        source: the paper or the rule that the check follows.
        forwards, backwards: what it cost, mean passes per audited image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=200)
    name: str = Field(min_length=1, max_length=200)
    verdict: CheckVerdict
    message: str = Field(min_length=1, max_length=10_000)
    value: FiniteFloat | None = None
    threshold: FiniteFloat | None = None
    images: str = ""
    advice: str = ""
    source: str = ""
    forwards: _Passes = 0.0
    backwards: _Passes = 0.0

    @field_validator("images")
    @classmethod
    def _is_folded(cls, text: str) -> str:
        if text and not is_folded(text):
            raise ValueError("images are not ids of the form 0-99,120,130-131")
        return text


def read_profile(text: str) -> Profile:
    """A profile by its name. Raises `BadInput` for anything else."""
    for profile in PROFILES:
        if text == profile:
            return profile
    raise BadInput(f"unknown profile {text!r}: use {', '.join(PROFILES)}")


def verdict_of(checks: Iterable[AuditCheck]) -> Verdict:
    """The worst of the checks. There is no verdict that says a row is not masked: what no check
    saw may still be there.
    """
    verdicts = {check.verdict for check in checks}
    if "fail" in verdicts:
        return "masking-evidence"
    return "inconclusive" if "warn" in verdicts else "no-evidence-found"


class AuditReport(BaseModel):
    """The audit of one record, stored beside it.

    Attributes:
        schema_version: version of this format.
        record: id of the audited evaluation.
        profile: how much was checked.
        verdict: the worst of the checks; see `verdict_of`.
        images: ids of the audited images, runs folded; empty under `quick`, which computes nothing.
        checks: in the order in which they ran.
        extra: points that broke images which the row's attack had left; the worst case counts them
            as an attack.
        seconds: wall time.
        finished: date and time in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA
    record: str = Field(pattern=r"^[0-9a-f]{16}$")
    profile: Profile
    verdict: Verdict
    images: str
    checks: list[AuditCheck]
    extra: list[ExtraPoints] = Field(default_factory=list)
    seconds: _Passes
    finished: str

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> AuditReport:
        if self.verdict != verdict_of(self.checks):
            raise ValueError("the verdict does not follow from the checks")
        if self.images and not is_folded(self.images):
            raise ValueError("images are not ids of the form 0-99,120,130-131")
        if len({check.id for check in self.checks}) != len(self.checks):
            raise ValueError("two checks have one id")
        if len({extra.name for extra in self.extra}) != len(self.extra):
            raise ValueError("two sets of extra points have one name")
        datetime.fromisoformat(self.finished)
        return self

    def check(self, record: str, outcomes: Outcomes) -> None:
        """Raise `ValueError` unless this is the audit of the record of this id and outcomes."""
        if self.record != record:
            raise ValueError(f"it is the audit of {self.record}, not of {record}")
        n = len(outcomes.true_labels())
        for folded in (self.images, *(check.images for check in self.checks)):
            if folded and count_ids(folded) > n:
                raise ValueError("it speaks of more images than the record has")
        if self.images and not set(decode_ids(self.images)) <= set(outcomes.image_ids()):
            raise ValueError("it speaks of images that the record does not have")
        for extra in self.extra:
            extra.check(outcomes)

    @property
    def failed(self) -> list[AuditCheck]:
        return [check for check in self.checks if check.verdict == "fail"]

    @property
    def warned(self) -> list[AuditCheck]:
        return [check for check in self.checks if check.verdict == "warn"]
