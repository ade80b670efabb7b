"""A certificate of a record: images that no attack in the ball can break, stored beside it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bench.errors import BadInput
from bench.results.estimate import Estimate
from bench.results.intervals import wilson
from bench.results.outcomes import Labels, Outcomes, count_ids, decode_ids, is_folded

SCHEMA: Literal[1] = 1


class Contradiction(BadInput):
    """An attack broke an image that a proof says no attack can break: one of the two is wrong."""


class Certificate(BaseModel):
    """What was proved of the images that a record's attack had left.

    Attributes:
        schema_version: version of this format.
        record: id of the evaluation.
        method: `crown` or `alpha-crown`; see `bench.certify.crown`.
        steps: of the ascent on the lower slopes; 0 for `crown`.
        certified: ids of the images that are answered alike all over the ball, runs folded.
        undecided: those that the attack left and the proof did not reach.
        tried: images that the attack had broken, on which the proof was tried as a check of
            itself; it must have certified none.
        seconds: wall time.
        finished: date and time in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA
    record: str = Field(pattern=r"^[0-9a-f]{16}$")
    method: Literal["crown", "alpha-crown"]
    steps: int = Field(ge=0, le=10_000)
    certified: str
    undecided: str
    tried: str
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    finished: str

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Certificate:
        if (self.method == "crown") != (self.steps == 0):
            raise ValueError("the method and its steps do not go together")
        if any(ids and not is_folded(ids) for ids in self._lists()):
            raise ValueError("images are not ids of the form 0-99,120,130-131")
        datetime.fromisoformat(self.finished)
        return self

    def _lists(self) -> tuple[str, str, str]:
        return self.certified, self.undecided, self.tried

    def check(self, record: str, outcomes: Outcomes) -> None:
        """Raise `ValueError` unless this is a certificate of the record of this id and outcomes,
        and `Contradiction` where the record's attack broke a certified image.
        """
        if self.record != record:
            raise ValueError(f"it is the certificate of {self.record}, not of {record}")
        n = len(outcomes.true_labels())
        counts = [count_ids(ids) if ids else 0 for ids in self._lists()]
        if sum(counts) > n:
            raise ValueError("it speaks of more images than the record has")
        lists = [decode_ids(ids) for ids in self._lists()]
        ids = np.concatenate(lists)
        if len(np.unique(ids)) != len(ids) or not np.isin(ids, outcomes.image_ids()).all():
            raise ValueError("it names an image twice, or one that the record does not have")
        survived = outcomes.correct("adversarial").all(axis=1)
        left = outcomes.image_ids()[survived]
        check_certified(self.ids(), outcomes, "the record beside it")
        if set(lists[1]) - set(left) or set(lists[2]) & set(left):
            raise ValueError("it calls images broken or undecided that the record does not")

    def ids(self) -> Labels:
        """Ids of the certified images, (m,)."""
        return decode_ids(self.certified)

    def share(self, n: int) -> Estimate:
        """Certified accuracy: certified images of n, with Wilson's interval."""
        return wilson(len(self.ids()), n)


def check_certified(certified: Labels, outcomes: Outcomes, where: str) -> None:
    """Raise `Contradiction` where one of these images is broken in these outcomes."""
    broken = outcomes.image_ids()[~outcomes.correct("adversarial").all(axis=1)]
    both = sorted(set(broken.tolist()) & set(certified.tolist()))
    if both:
        raise Contradiction(
            f"{where} breaks image {both[0]}{' and others' * (len(both) > 1)}, of which a "
            "certificate says that no attack can: one of the two is wrong; please report both "
            "files"
        )
