"""The contract of a diffusion source: where a trained diffusion model comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from bench.diffusion.model import DiffusionModel
from bench.spec import Params

P = TypeVar("P", bound=Params)


class DiffusionSource(ABC, Generic[P]):
    """A source of trained diffusion models. Subclasses set the class attributes and write `load`.

    Attributes:
        Params: the parameter model.
        positional: the parameter that a spec's item without key fills.
        version: raise it when the same spec may give another model.
    """

    Params: ClassVar[type[Params]] = Params
    positional: ClassVar[str | None] = None
    version: ClassVar[int] = 1

    def __init__(self, params: P) -> None:
        self.params = params

    @abstractmethod
    def load(self) -> DiffusionModel:
        """The model on the CPU, weights frozen, in evaluation mode. Raises `BadInput` where it
        cannot be read.
        """
