"""Findings: what a reader of a number must know about it, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Finding(BaseModel):
    """One check and its outcome.

    Attributes:
        name: the check.
        verdict: `note` to know, `warn` to doubt the number, `fail` not to believe it.
        message: what was seen and what to do, in one sentence.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    verdict: Literal["note", "warn", "fail"]
    message: str
