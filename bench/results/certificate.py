"""A certificate of a record, stored beside it: images that no attack in the ball can break, or on
which a vote over Gaussian noise stays right.
"""

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
    """What is certified of a record's images: of those that its attack had left, by a proof; of all
    of them, with a small probability of error, where the answer is a vote over Gaussian noise.

    Attributes:
        schema_version: version of this format.
        record: id of the evaluation.
        kind: `deterministic`: no attack can break a certified image. `probabilistic`: the most
            frequent answer under noise stays right all over the ball, for each image with
            probability 1 - alpha; the deployed vote of few draws may err all the same.
        method: `crown` or `alpha-crown`, see `bench.certify.crown`; `smoothing`, see
            `bench.certify.vote`.
        steps: of the ascent on the lower slopes; 0 for the other methods.
        sigma, alpha, n0, n: of a vote, see `bench.certify.vote.Confidence`; None for a proof.
        certified: ids of the images that are answered alike and rightly all over the ball, runs
            folded.
        undecided: those that the attack left and the proof did not reach; of a vote, those that are
            right in a ball that is too small, and the refuted ones.
        abstained: of a vote, those whose class has no majority that is sure enough. They count as
            wrong.
        wrong: of a vote, those for which another class was chosen.
        tried: images that the attack had broken, on which a proof was tried as a check of itself
            (it must have certified none); of a vote, those with a certificate whose attacked point
            was put to the vote.
        refuted: those of them where the vote at that point is surely wrong.
        radii: of a vote, the L2 radius of each image of the record, in order of the images, rounded
            down; 0 where it abstains or is wrong. None for a proof.
        seconds: wall time.
        finished: date and time in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA
    record: str = Field(pattern=r"^[0-9a-f]{16}$")
    kind: Literal["deterministic", "probabilistic"] = "deterministic"
    method: Literal["crown", "alpha-crown", "smoothing"]
    steps: int = Field(0, ge=0, le=10_000)
    sigma: float | None = Field(None, gt=0)
    alpha: float | None = Field(None, gt=0, lt=0.5)
    n0: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    certified: str
    undecided: str
    abstained: str = ""
    wrong: str = ""
    tried: str
    refuted: str = ""
    radii: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    finished: str

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Certificate:
        voted = self.method == "smoothing"
        if voted != (self.kind == "probabilistic") or (self.method == "alpha-crown") != bool(
            self.steps
        ):
            raise ValueError("the kind, the method and its steps do not go together")
        of_a_vote = (self.sigma, self.alpha, self.n0, self.n, self.radii)
        if any((one is None) == voted for one in of_a_vote):
            raise ValueError("sigma, alpha, n0, n and radii go with a vote, and with nothing else")
        if not voted and (self.abstained or self.wrong or self.refuted):
            raise ValueError("a proof does not abstain, nor choose a class")
        if any(ids and not is_folded(ids) for ids in (*self._lists(), self.refuted)):
            raise ValueError("images are not ids of the form 0-99,120,130-131")
        datetime.fromisoformat(self.finished)
        return self

    def _lists(self) -> tuple[str, ...]:
        """Ids that no two lists share."""
        if self.kind == "probabilistic":
            return self.certified, self.undecided, self.abstained, self.wrong
        return self.certified, self.undecided, self.tried

    def check(self, record: str, outcomes: Outcomes) -> None:
        """Raise `ValueError` unless this is a certificate of the record of this id and outcomes,
        and `Contradiction` where the record's attack broke an image that a proof certifies.
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
        if self.radii is not None:
            if len(ids) != n or len(self.radii) != n:
                raise ValueError("it does not speak of every image of the record")
            return
        survived = outcomes.correct("adversarial").all(axis=1)
        left = outcomes.image_ids()[survived]
        check_certified(self.ids(), outcomes, "the record beside it")
        if set(lists[1]) - set(left) or set(lists[2]) & set(left):
            raise ValueError("it calls images broken or undecided that the record does not")

    def broken(self, outcomes: Outcomes) -> Labels:
        """Ids of certified images that some judged draw of these outcomes answers wrongly: none
        under a proof.
        """
        wrong = outcomes.image_ids()[~outcomes.correct("adversarial").all(axis=1)]
        return np.intersect1d(self.ids(), wrong)

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
