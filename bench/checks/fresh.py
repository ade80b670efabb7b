"""Copies of a defense that have seen no image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from bench.checks.state import State, state_of
from bench.defense import DefendedClassifier
from bench.errors import one_line
from bench.models.foreign import copied


@dataclass(frozen=True)
class FreshCopies:
    """Makes copies of a defense as it was when it was built.

    Attributes:
        make: a copy of its own at each call; None where none can be made.
        reason: why none can be made.
        born: the state of the defense when they were made.
    """

    make: Callable[[], DefendedClassifier] | None
    reason: str = ""
    born: State = field(default_factory=State)


def fresh_copies(
    defended: DefendedClassifier, rebuild: Callable[[], DefendedClassifier]
) -> FreshCopies:
    """Copies of a defense that was just built and has seen no image.

    Args:
        defended: the defense; what happens to it later does not reach the copies.
        rebuild: builds it anew, for what cannot be copied.
    """
    try:
        first = copied(defended)
        return FreshCopies(lambda: copied(first), born=state_of(defended))
    except Exception as error:
        reason = f"{type(defended).__name__} cannot be copied ({one_line(error)})"
    try:
        again = rebuild()
    except Exception as error:
        return FreshCopies(None, f"{reason} nor built a second time ({one_line(error)})")
    if _parts(again) & _parts(defended):
        return FreshCopies(None, f"{reason}, and a second build shares its parts")
    return FreshCopies(rebuild, born=state_of(defended))


def _parts(module: nn.Module) -> set[int]:
    return {id(part) for part in module.modules()}
