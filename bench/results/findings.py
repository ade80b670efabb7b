"""Findings: what a reader of a number must know about it, as data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from bench.results.outcomes import decode_ids, encode_ids, is_folded


class Finding(BaseModel):
    """One check and its outcome.

    Attributes:
        name: the check.
        verdict: `note` to know, `warn` to doubt the number, `fail` not to believe it.
        message: what was seen and what to do, in one sentence.
        value: what was measured, where the check measures a number.
        threshold: the number beyond which the check speaks.
        images: ids of the images that it speaks of, runs folded as in `Outcomes.ids`; empty where
            it speaks of all or of none in particular.
        advice: what to do, as a clause of its own for programs to show.
        source: the paper or the rule that the check follows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    verdict: Literal["note", "warn", "fail"]
    message: str
    value: FiniteFloat | None = None
    threshold: FiniteFloat | None = None
    images: str = ""
    advice: str = ""
    source: str = ""

    @field_validator("images")
    @classmethod
    def _is_folded(cls, text: str) -> str:
        if text and not is_folded(text):
            raise ValueError("images are not ids of the form 0-99,120,130-131")
        return text

    def image_ids(self) -> list[int]:
        """Ids of the images that it speaks of."""
        return [int(i) for i in decode_ids(self.images)]


def ids_of(images: Iterable[int]) -> str:
    """Image ids for `Finding.images`: ascending, runs folded."""
    return encode_ids(sorted(int(i) for i in images))
