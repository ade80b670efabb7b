"""Files that are not there: a run refuses, a plan names them and goes on with what is declared of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar, cast

from bench.errors import Missing

DECLARED = "declared:"
"""How the hash of something begins that is only declared, and not there."""

T = TypeVar("T")


@dataclass
class Plan:
    """What a plan is without.

    Attributes:
        missing: what is missing and where to get it, a line each, in the order of its need.
    """

    missing: list[str] = field(default_factory=list)
    _made: dict[str, object] = field(default_factory=dict)

    def stand_in(self, what: str, error: Missing, make: Callable[[], T]) -> T:
        """See the function of this name."""
        if what not in self._made:
            self._made[what] = make()
            if str(error) not in self.missing:
                self.missing.append(str(error))
        return cast(T, self._made[what])


_PLAN: ContextVar[Plan | None] = ContextVar("plan", default=None)


@contextmanager
def planning() -> Iterator[Plan]:
    """Inside the block nothing is downloaded, and what is missing is named and stood in for."""
    plan = Plan()
    token = _PLAN.set(plan)
    try:
        yield plan
    finally:
        _PLAN.reset(token)


def is_planning() -> bool:
    """Whether a plan is being made, so that nothing is to be downloaded."""
    return _PLAN.get() is not None


def stand_in(what: str, error: Missing, make: Callable[[], T]) -> T:
    """What stands for a missing file while a plan is made; the same each time. Raises the error
    where none is made, and what `make` raises.

    Args:
        what: a name of it, such as `cifar10/test`.
        error: says what is missing and where to get it.
        make: makes it of what is declared.
    """
    plan = _PLAN.get()
    if plan is None:
        raise error
    return plan.stand_in(what, error, make)
