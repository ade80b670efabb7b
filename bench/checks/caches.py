"""Which attributes of a defense may change without being state: caches, and notes that no one
reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from torch import nn

from bench.checks.state import owner_of, state_of
from bench.defense import DefendedClassifier

Run = Callable[[DefendedClassifier, bool], None]
"""Runs a few images through a defense; those of True have the shape of those of False, and nothing
else in common with them.
"""


def harmless(
    copies: Callable[[], DefendedClassifier], names: Iterable[str], run: Run
) -> frozenset[str]:
    """Which of these attributes hold nothing of the images that went through.

    - A cache: one pass fills it, and a pass of other images of the same shape leaves it as it is.
    - A note: every pass writes it, and none reads it, such as the last attention map.

    Parameters, buffers and attributes of a class are never harmless.

    Args:
        copies: makes copies of the defense that have seen no image.
        names: names of `State` that moved.
        run: see there.
    """
    fresh = copies()
    empty = state_of(fresh)
    run(fresh, False)
    filled = state_of(fresh)
    run(fresh, True)
    again = state_of(fresh)
    chosen = set()
    for name in names:
        own = owner_of(fresh, name)
        if own is None:
            continue
        is_cache = filled.get(name) != empty.get(name) and filled.get(name) == again.get(name)
        if is_cache or _is_note(copies(), name, run):
            chosen.add(name)
    return frozenset(chosen)


def growing(
    copies: Callable[[], DefendedClassifier], names: Iterable[str], run: Run
) -> frozenset[str]:
    """Which of these, shared by all copies, change with every new set of images: no cache does.

    Args:
        copies: makes copies of the defense that share these with it.
        names: names of `State`.
        run: see there.
    """
    fresh = copies()
    run(fresh, False)
    filled = state_of(fresh)
    run(fresh, True)
    again = state_of(fresh)
    return frozenset(name for name in names if filled.get(name) != again.get(name))


def _is_note(fresh: DefendedClassifier, name: str, run: Run) -> bool:
    """Whether a pass writes the attribute without reading it."""
    part = _part(fresh, name)
    leaf = name.rpartition(".")[2]
    vars(part)[leaf] = poison = _Poison()
    try:
        run(fresh, False)
    except Exception:
        return False
    return vars(part).get(leaf) is not poison


def _part(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


class _Poison:
    """A value that cannot be used for anything."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("an attribute was read")

    def _refuse(self, *_: Any) -> NoReturn:
        raise RuntimeError("an attribute was read")

    __bool__ = __len__ = __iter__ = __contains__ = __getitem__ = __setitem__ = __call__ = _refuse
    __add__ = __radd__ = __iadd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __index__ = __float__ = _refuse
    __hash__ = _refuse
