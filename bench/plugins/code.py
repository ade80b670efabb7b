"""The code of a class that a Python program defines, as a hash: no file names it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

_PLAIN = (bool, int, float, str, bytes, type(None))


def code_sha256(kind: type) -> str:
    """Hash of a class: the code of its methods, plain attributes, and the classes and functions of
    its module that they name.

    Attributes of other types, and what other modules hold, are not seen.
    """
    digest = hashlib.sha256()
    for piece in _class(kind, kind.__module__, set()):
        digest.update(piece.encode())
    return digest.hexdigest()


def _class(kind: type, home: str, seen: set[object]) -> Iterator[str]:
    if kind in seen or kind.__module__ != home:
        return
    seen.add(kind)
    yield f"class {kind.__qualname__} {[base.__qualname__ for base in kind.__bases__]}"
    for name, value in vars(kind).items():
        if not name.startswith("__") or name in ("__init__", "__call__"):
            yield f" {name}="
            yield from _value(value, home, seen)
    for base in kind.__bases__:
        yield from _class(base, home, seen)


def _value(value: Any, home: str, seen: set[object]) -> Iterator[str]:
    function = getattr(value, "fget", None) or getattr(value, "__func__", value)
    if isinstance(function, FunctionType):
        yield from _function(function, home, seen)
    elif isinstance(value, type):
        yield value.__qualname__
        yield from _class(value, home, seen)
    elif isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, tuple | list | set | frozenset):
        yield type(value).__name__
        for item in sorted(value, key=repr) if isinstance(value, set | frozenset) else value:
            yield from _value(item, home, seen)


def _function(function: FunctionType, home: str, seen: set[object]) -> Iterator[str]:
    if function in seen or function.__module__ != home:
        return
    seen.add(function)
    yield from _code(function.__code__)
    yield from _value(function.__defaults__ or (), home, seen)
    for cell in function.__closure__ or ():
        yield from _value(cell.cell_contents, home, seen)
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield f" {name}:"
            yield from _value(function.__globals__[name], home, seen)


def _code(code: CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield repr(constant)


def _names(code: CodeType) -> set[str]:
    inside = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names, *(name for one in inside for name in _names(one))}
