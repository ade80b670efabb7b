"""Findings: what a reader of a number must know about it, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Finding(BaseModel):
    """One check and its outcome.

    Attributes:
        name: the check.
        verdict: `note` to know, `warn` to doubt the number, `fail` not to believe it.
        message: what was seen and what to do, in one sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    verdict: Literal["note", "warn", "fail"]
    message: str
