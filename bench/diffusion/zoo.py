"""`zoo:NAME`: diffusion models that come with the suite."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from bench.diffusion.layout import CARD, Place, Which, in_folder, kept_weights, read_model
from bench.diffusion.model import DiffusionModel
from bench.diffusion.source import DiffusionSource
from bench.errors import BadInput
from bench.spec import Params, nearest

WEIGHTS = Path(__file__).parent / "weights"


class ZooParams(Which):
    name: str = Field(description="name of a shipped diffusion model")


class Zoo(DiffusionSource[ZooParams]):
    """A diffusion model that comes with the suite, trained by `bench train-diffusion`; its card
    has recipe and error.
    """

    Params: ClassVar[type[Params]] = ZooParams
    positional: ClassVar[str | None] = "name"

    def load(self) -> DiffusionModel:
        """The model on the CPU, frozen, in evaluation mode. Raises `BadInput` for an unknown name
        or step.
        """
        return read_model(_place(self.params.name), self.params)

    def kept(self) -> list[tuple[int, str]]:
        return kept_weights(_place(self.params.name))


def names() -> list[str]:
    """Names of the shipped diffusion models, sorted."""
    return sorted(path.parent.name for path in WEIGHTS.glob(f"*/{CARD}"))


def _place(name: str) -> Place:
    if name not in names():
        raise BadInput(f"unknown zoo diffusion model {name!r}.{nearest(name, names())}")
    return in_folder(WEIGHTS / name)
