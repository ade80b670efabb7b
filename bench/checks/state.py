"""What a defense remembers: everything in its tree of modules that a forward pass could change."""

from __future__ import annotations

import hashlib
import random
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from ctypes import Array
from functools import partial
from io import BytesIO, StringIO
from mmap import mmap
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, str]
"""By name, such as `inner.bias`, a digest of the value."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
# What torch keeps in every module, without its mode.
_BOOKKEEPING = frozenset(vars(nn.Module())) - {"training"}
_LIBRARIES = {"torch", "torchvision", "builtins", "typing", "abc", "enum", "functools", "numpy"}
# Globals of the suite's own code are registries.
_KNOWN = _LIBRARIES | set(sys.stdlib_module_names) | {"bench", "bench_defenses", "bench_attacks"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MOST_VALUES, _DEEPEST = 200_000, 12


def state_of(module: nn.Module) -> State:
    """The parameters, buffers and plain attributes of a module and all modules in it.

    Plain attributes are numbers, texts, arrays, tensors, generators, containers and plain objects,
    those of classes that no library wrote among them. Of functions, the methods of such classes and
    hooks among them: closures, defaults, attributes, and the global variables that they name.
    Files, threads and the caches of `functools` are not looked at.
    """
    walk, state = _Walk(), State()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        state[name] = walk.digest(tensor)
    parts = dict(module.named_modules())
    walk.known.update({id(part): part for part in parts.values()})
    for path, part in parts.items():
        for name, value in _attributes(part):
            state[f"{path}.{name}".lstrip(".")] = walk.digest(value)
    return state


def moved(before: State, after: State) -> list[str]:
    """The names of what changed, appeared or went."""
    return sorted(name for name in before | after if before.get(name) != after.get(name))


def owner_of(module: nn.Module, name: str) -> nn.Module | None:
    """The module whose own attribute a name of `State` is; None for parameters, buffers and
    attributes of a class. The module must have gone through the passes that made the attribute.
    """
    path, _, leaf = name.rpartition(".")
    try:
        part = module.get_submodule(path)
    except AttributeError:
        return None
    return part if leaf in vars(part) else None


def _attributes(part: nn.Module) -> list[tuple[str, Any]]:
    own = [(name, value) for name, value in vars(part).items() if name not in _BOOKKEEPING]
    shared = [
        (kind, name, value)
        for kind in type(part).__mro__
        if kind.__module__.partition(".")[0] not in _LIBRARIES
        for name, value in vars(kind).items()
        if isinstance(value, FunctionType)
        or (isinstance(value, _CHANGEABLE) and not name.startswith(("__", "_abc")))
    ]
    # A hook that holds nothing is none: whoever looks on may register it.
    hooks = [
        (f"{kind}.{number}", hook)
        for kind in _HOOKS
        for number, hook in vars(part).get(kind, {}).items()
        if _inside(hook)
    ]
    return own + _told_apart({name for name, _ in own}, shared) + hooks


def _told_apart(taken: set[str], shared: Iterable[tuple[type, str, Any]]) -> list[tuple[str, Any]]:
    """What classes hold, by name; with the name of the class where a nearer one has it as well."""
    found = []
    for kind, name, value in shared:
        found.append((f"{kind.__qualname__}.{name}" if name in taken else name, value))
        taken.add(name)
    return found


_BUFFERS = (bytearray, memoryview, array, mmap, Array)
_HOLDERS = (BytesIO, StringIO, SimpleNamespace)
_CHANGEABLE = (
    *(*_PLAIN, Tensor, np.ndarray, list, tuple, dict, set, deque),
    *(*_BUFFERS, *_HOLDERS),
)


class _Walk:
    """Digests values; each object that lives on is entered once."""

    def __init__(self) -> None:
        # Kept alive, so that no other object gets the number of one that is gone.
        self.known: dict[int, Any] = {}
        self._left = _MOST_VALUES

    def digest(self, value: Any) -> str:
        hasher = hashlib.blake2b(digest_size=16)
        self._enter(hasher.update, value, 0)
        return hasher.hexdigest()

    def _enter(self, put: Callable[[bytes], None], value: Any, depth: int) -> None:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            return
        put(type(value).__name__.encode())
        if isinstance(value, _PLAIN):
            put(repr(value).encode())
        elif isinstance(value, Tensor):
            put(_tensor(value))
        elif isinstance(value, np.ndarray):
            put(f"{value.dtype} {value.shape}".encode())
            put(repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes())
        elif isinstance(value, np.generic):
            put(value.tobytes())
        elif isinstance(value, _BUFFERS):
            put(memoryview(value).tobytes())
        elif id(value) not in self.known:
            self.known[id(value)] = value
            for inside in _inside(value):
                self._enter(put, inside, depth + 1)


def _inside(value: Any) -> list[Any]:
    """What a container, a generator, a function or a plain object holds."""
    if isinstance(value, Mapping):
        return [one for pair in value.items() for one in pair]
    if isinstance(value, list | tuple | deque):
        return list(value)
    if isinstance(value, Set):
        return sorted(value, key=repr)
    if isinstance(value, torch.Generator):
        return [value.get_state()]
    if isinstance(value, np.random.Generator):
        return [value.bit_generator.state]
    if isinstance(value, np.random.RandomState):
        return [value.get_state(legacy=False)]
    if isinstance(value, random.Random):
        return [value.getstate()]
    if isinstance(value, BytesIO | StringIO):
        return [value.getvalue()]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, FunctionType):
        return _of_function(value)
    kind = type(value)
    if kind.__module__ == "itertools":
        return [repr(value)]
    if isinstance(value, type) or kind.__module__.partition(".")[0] in _LIBRARIES - {"builtins"}:
        # A module in a list is a part like any other.
        return _of_module(value) if isinstance(value, nn.Module) else []
    if isinstance(value, nn.Module):
        return _of_module(value)
    slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    held = [getattr(value, name, None) for name in slots if isinstance(name, str)]
    return [*held, getattr(value, "__dict__", None)]


def _of_module(part: nn.Module) -> list[Any]:
    tensors = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    return [*tensors, *_attributes(part), *part.children()]


def _of_function(value: FunctionType) -> list[Any]:
    """Closure, defaults, attributes, and what it names of the variables of its own module."""
    held = [_content(cell) for cell in value.__closure__ or ()]
    held += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    held += vars(value).values()
    if value.__module__ and value.__module__.partition(".")[0] not in _KNOWN:
        there = value.__globals__
        held += [there[name] for name in _named(value.__code__) if _is_data(there.get(name))]
    return held


def _named(code: CodeType) -> list[str]:
    """The global variables that a function names, those of functions inside it among them."""
    inside = [one for one in code.co_consts if isinstance(one, CodeType)]
    return sorted({*code.co_names, *(name for one in inside for name in _named(one))})


def _is_data(value: Any) -> bool:
    """Whether a global variable may be memory, rather than code or a library's."""
    if isinstance(value, _CHANGEABLE):
        return value is not None
    if isinstance(value, FunctionType):
        return (value.__module__ or "").partition(".")[0] not in _KNOWN
    kind = type(value)
    return not isinstance(value, type) and kind.__module__.partition(".")[0] not in _KNOWN


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _tensor(value: Tensor) -> bytes:
    value = value.detach()
    kind = f"{value.dtype} {tuple(value.shape)}".encode()
    if value.is_meta or value.layout is not torch.strided:
        return kind
    if value.is_quantized:
        value = value.int_repr()
    flat = value.cpu().contiguous().reshape(-1)
    return kind + bytes(flat.view(torch.uint8).numpy().data)
