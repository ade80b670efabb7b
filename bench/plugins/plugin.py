"""What all kinds of plugins share."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar, Generic, TypeVar

from bench.spec import Params, own_params

P = TypeVar("P", bound=Params)


class Plugin(ABC, Generic[P]):
    """A class that a spec names: `name:key=value` fills its parameters.

    Attributes:
        Params: the parameter model.
        positional: the parameter that a spec's item without key fills.
        version: raise it when the same spec may give other results; it enters their identity.
    """

    Params: ClassVar[type[Params]] = Params
    positional: ClassVar[str | None] = None
    version: ClassVar[int] = 1

    def __init__(self, params: P | None = None, /, **parameters: Any) -> None:
        self.params: P = own_params(self, params, parameters)
