"""What a worker process is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bench.engine.request import Request


class Job(BaseModel):
    """Evaluations for several processes, each of which plans them from the same requests.

    Attributes:
        requests: what is to be evaluated.
        out: folder of records.
        device: where this process computes.
        batch_size: most rows in one forward pass.
        compile: what searches read; see `Execution`.
        weights: a folder of records with weights beside them; see `Execution`.
        threads: torch threads of this process.
        ids: the evaluations that were planned from the requests, where another machine must plan
            the same ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: tuple[Request, ...]
    out: Path
    device: str
    batch_size: int
    compile: str = "off"
    weights: Path | None = None
    threads: int
    ids: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The job on one line; options that were not given stay so."""
        return self.model_dump_json(exclude_unset=True)
