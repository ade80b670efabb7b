"""What a module is, as a hash: its structure, its code and every number it holds."""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from bench.models.sketch import sketches

_PLAIN = (bool, int, float, str, type(None))
_BOOKKEEPING = frozenset(vars(nn.Module())) | {"stochastic"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_LIBRARIES = ("builtins", "torch", "diffusers")
_MANGLED = rb"\.?___torch_mangle_\d+"
_INCIDENTAL = (".debug_pkl", "/version", "/byteorder", "/serialization_id")
_OURS = ("bench", "bench_defenses", "bench_attacks")


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over a module's structure, its classes' source, its attributes, its hooks and every
    tensor it holds; of one that is only sketched, what it stands for.
    """
    if sketched := sketches(module):
        return sketched[0].stands_for
    return _fingerprint(module, ())


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over a module's parameters and buffers, wherever they lie."""
    digest = hashlib.sha256()
    for piece in _weights(module):
        digest.update(piece)
    return digest.hexdigest()


def _fingerprint(module: nn.Module, path: tuple[int, ...]) -> str:
    # Not the module's repr: what torch's own modules print changes with its version.
    digest, known = hashlib.sha256(), _under_configuration(module)
    archived = _under_torchscript(module)
    for name, part in module.named_modules():
        if id(part) in archived:
            continue
        inside = (*path, id(part))
        if isinstance(part, torch.jit.ScriptModule):
            about = _torchscript(part)
        elif isinstance(part, torch.fx.GraphModule):
            about = f"{_name(torch.fx.GraphModule)} {part.code}"
        elif id(part) in known:
            about = _configured(part, inside)
        else:
            about = f"{_source(type(part))} {_attributes(part, inside)}"
        digest.update(f"{name} {about}".encode())
    for piece in _weights(module):
        digest.update(piece)
    return digest.hexdigest()


def _under_torchscript(module: nn.Module) -> set[int]:
    """The ids of the parts of TorchScript modules, which are in the archives of the whole."""
    roots = [part for part in module.modules() if isinstance(part, torch.jit.ScriptModule)]
    return {id(part) for root in roots for part in root.modules() if part is not root}


def _torchscript(module: torch.jit.ScriptModule) -> str:
    """A TorchScript module by its archive: code, constants and attributes.

    Debug information holds paths, and a number behind a class name says only how many of that name
    the process has seen.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch.jit is deprecated as a whole, which users of it know.
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(module, buffer)
    with zipfile.ZipFile(buffer) as archive:
        members = {
            name: re.sub(_MANGLED, b"", archive.read(name))
            for name in archive.namelist()
            if not name.endswith(_INCIDENTAL)
        }
    # Which classes share a file depends on those numbers as well.
    code = b"\n".join(content for name, content in members.items() if name.endswith(".py"))
    parts = re.split(rb"^(?=class |def )", code, flags=re.MULTILINE)
    pieces = [("code", piece) for piece in {_ordered(part.strip()) for part in parts}]
    pieces += [(name, content) for name, content in members.items() if not name.endswith(".py")]
    digest = hashlib.sha256()
    for name, content in sorted(pieces):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return f"torchscript {digest.hexdigest()}"


def _ordered(code: bytes) -> bytes:
    """The code of a class with its constants last and sorted: torch keeps them in a set."""
    lines = code.split(b"\n")
    constants = [line for line in lines if b" : Final[" in line]
    return b"\n".join([line for line in lines if line not in constants] + sorted(constants))


def _under_configuration(module: nn.Module) -> set[int]:
    """The ids of diffusers' own modules in networks that carry their configuration: it says what
    they do in any version.
    """
    roots = [
        part
        for part in module.modules()
        if _library(type(part)) == "diffusers" and _configuration(part) is not None
    ]
    return {
        id(part) for root in roots for part in root.modules() if _library(type(part)) == "diffusers"
    }


def _configured(module: nn.Module, path: tuple[int, ...]) -> str:
    """A module of diffusers by its class, its configuration, and what others put on it: hooks,
    functions, objects.
    """
    own = {
        k: v
        for k, v in vars(module).items()
        if k not in _BOOKKEEPING and _library(v) not in _LIBRARIES
    }
    return (
        f"{_name(type(module))} {_configuration(module)} {_listed({**own, **_hooks(module)}, path)}"
    )


def _configuration(module: nn.Module) -> str | None:
    """The arguments that differ from their defaults: a later version may have more of them, or say
    more in its own keys.
    """
    config = getattr(module, "config", None)
    if not isinstance(config, Mapping):
        return None
    defaults = {
        name: about.default
        for name, about in inspect.signature(type(module).__init__).parameters.items()
    }
    texts = {
        key: (json.dumps(value, default=repr), json.dumps(defaults.get(key), default=repr))
        for key, value in config.items()
    }
    return repr(
        sorted(
            (key, text)
            for key, (text, default) in texts.items()
            if text != default and not key.startswith("_")
        )
    )


def _weights(module: nn.Module) -> Iterator[bytes]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
        yield _bytes(tensor)
    yield from _packed(module)


def _packed(module: nn.Module) -> Iterator[bytes]:
    """Weights that are neither parameters nor buffers, as those of quantised layers."""
    for name, part in module.named_modules():
        if ".quantized." in type(part).__module__:
            for key, value in sorted(part.state_dict().items()):
                yield f"{name} {key} {_described(value, ())}".encode()


def _bytes(tensor: Tensor) -> bytes:
    if tensor.is_quantized:
        tensor = torch.cat([tensor.dequantize().flatten(), tensor.int_repr().flatten()])
    content: bytes = (
        tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    )
    return content


def _attributes(module: nn.Module, path: tuple[int, ...]) -> str:
    """Attributes such as a temperature, and hooks; of torch's own modules not the private ones,
    which repeat the others.
    """
    torchs = _library(type(module)) == "torch"
    own = {
        k: v
        for k, v in vars(module).items()
        if k not in _BOOKKEEPING and not (torchs and k.startswith("_"))
    }
    return _listed({**own, **_hooks(module)}, path)


def _hooks(module: nn.Module) -> dict[str, list[object]]:
    # Hooks are numbered through the whole process; their order is what counts.
    return {name: list(getattr(module, name).values()) for name in _HOOKS if getattr(module, name)}


def _listed(values: Mapping[str, object], path: tuple[int, ...]) -> str:
    return repr(
        [
            (name, value if _is_plain(value) else _described(value, path))
            for name, value in sorted(values.items())
        ]
    )


def _library(value: object) -> str:
    """The package that a class, a function or an object's class comes from."""
    module = getattr(value, "__module__", None) or type(value).__module__
    return str(module).partition(".")[0]


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (
        type(value) in (tuple, list) and all(map(_is_plain, cast(Sequence[object], value)))
    )


def _described(value: object, path: tuple[int, ...]) -> str:
    """A value by its content. `path` are the ids of what holds it, so that a circle ends."""
    if _is_plain(value) or isinstance(value, complex | bytes | torch.dtype | torch.device):
        return repr(value)
    if id(value) in path:
        return "(above)"
    inside = (*path, id(value))
    kind = _name(type(value))
    if isinstance(value, tuple | list):
        return f"{kind} {[_described(item, inside) for item in value]}"
    if isinstance(value, dict | set | frozenset):
        items = value.items() if isinstance(value, dict) else value
        return f"{kind} {sorted(_described(item, inside) for item in items)}"
    if isinstance(value, Tensor | np.ndarray):
        return _array(value, inside)
    if isinstance(value, nn.Module):
        return _fingerprint(value, inside)
    if isinstance(value, type):
        return _source(value)
    return f"{kind} {_code(value, inside)}"


def _array(value: Tensor | np.ndarray, path: tuple[int, ...]) -> str:
    if isinstance(value, np.ndarray):
        content = (
            _described(value.tolist(), path).encode()
            if value.dtype.hasobject
            else np.ascontiguousarray(value).tobytes()
        )
    else:
        content = _bytes(value)
    return f"{tuple(value.shape)} {value.dtype} {hashlib.sha256(content).hexdigest()}"


def _code(value: object, path: tuple[int, ...]) -> str:
    """A function by its bytecode, constants, defaults and closure; any other object by its
    attributes.
    """
    if isinstance(value, CodeType):
        # The repr of a function inside a function holds its address.
        return (
            f"{value.co_code.hex()} {value.co_names} "
            f"{[_described(constant, path) for constant in value.co_consts]}"
        )
    if isinstance(value, functools.partial):
        return _described((value.func, value.args, value.keywords), path)
    code = getattr(value, "__code__", None)
    if code is None:
        return _described(_own(value) or getattr(value, "__qualname__", None), path)
    closed = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    defaults = getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None)
    return _described([code, closed, defaults, getattr(value, "__self__", None)], path)


def _own(value: object) -> dict[str, object]:
    """An object's public attributes, but for other objects: through those a logger would reach the
    whole process.
    """
    kept = (*_PLAIN, tuple, list, dict, set, frozenset, Tensor, np.ndarray, nn.Module)
    public = {
        k: v for k, v in (getattr(value, "__dict__", None) or {}).items() if not k.startswith("_")
    }
    return {k: v for k, v in public.items() if isinstance(v, kept) or callable(v)}


def _name(kind: type) -> str:
    """A class by its name; one of ours by its name alone, so that moving it changes nothing."""
    home = "bench" if _library(kind) in _OURS else kind.__module__
    return f"{home}.{kind.__qualname__}"


def _source(kind: type) -> str:
    """Name and code of a class.

    torch's go by their name, as its version is in the record; ours by name and `version`, which is
    raised when the numbers may change.
    """
    name = _name(kind)
    if _library(kind) == "torch":
        return name
    if _library(kind) in _OURS:
        return f"{name} {getattr(kind, 'version', 1)}"
    try:
        return name + inspect.getsource(kind)
    except (TypeError, OSError):
        return name + _code(getattr(kind, "forward", None), ())
