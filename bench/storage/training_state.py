"""Training runs that can be interrupted: one loop, one way to keep their state and to go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from bench.errors import BadInput
from bench.storage.checkpoint import read_checkpoint, write_checkpoint

Report = TypeVar("Report")


class Stateful(Protocol):
    """A module or an optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that it has learnt."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take up what `state_dict` gave."""


class ResumableRun(ABC, Generic[Report]):
    """A training run that goes on after an interruption with the same bits.

    Subclasses say what their state is. It is written after each stretch of the training (an epoch,
    some steps), whole or not at all.

    Attributes:
        device: where the state is loaded to.
        identity: what decides the run's bits; a checkpoint of another identity is refused.
    """

    device: torch.device
    identity: str = ""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether nothing is left to train."""

    @abstractmethod
    def advance(self) -> Report:
        """Train the next stretch, and report on it."""

    @abstractmethod
    def parts(self) -> Mapping[str, Stateful]:
        """Modules and optimisers by name."""

    @abstractmethod
    def counters(self) -> dict[str, Any]:
        """The rest of the state: tensors, numbers, texts and containers of them."""

    @abstractmethod
    def take_up(self, counters: dict[str, Any]) -> None:
        """Go on from these counters; the parts are loaded."""

    def store(self, path: Path) -> None:
        """Write all that the rest of the run depends on."""
        states = {name: part.state_dict() for name, part in self.parts().items()}
        write_checkpoint(
            path, {"identity": self.identity, "parts": states, "counters": self.counters()}
        )

    def restore(self, path: Path) -> None:
        """Go on where `store` was called.

        Raises `BadInput` where the file is of another run, or no checkpoint at all.
        """
        with read_checkpoint(path, self.device) as content:
            same = content["identity"] == self.identity
            if same:
                for name, part in self.parts().items():
                    part.load_state_dict(content["parts"][name])
                self.take_up(content["counters"])
        if not same:
            raise BadInput(
                f"{path} is of a run with another recipe, seed or data: remove it or give another "
                "--out"
            )

    def finish(
        self, path: Path | None = None, report: Callable[[Report], None] | None = None
    ) -> None:
        """Train to the end, from the checkpoint at `path` where there is one.

        Args:
            path: where the state is kept after each stretch; None keeps none. The caller removes
                it.
            report: called after each stretch.
        """
        if path is not None and path.exists():
            self.restore(path)
        while not self.finished:
            done = self.advance()
            if path is not None:
                self.store(path)
            if report is not None:
                report(done)


def stored_counters(path: Path) -> dict[str, Any]:
    """The counters in a checkpoint; none where there is no file. Raises `BadInput` where it cannot
    be read.
    """
    if not path.exists():
        return {}
    with read_checkpoint(path, torch.device("cpu")) as content:
        return dict(content["counters"])
