"""Files of weights: state dicts in safetensors or files of torch.save, in the layouts that trainers
leave behind. Nothing is unpickled but tensors, plain containers and an explicit list of harmless
classes.
"""

from __future__ import annotations

import argparse
import importlib
import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from bench.errors import BadInput, one_line

State = dict[str, Tensor]

EXPORT = "export the state dict to safetensors (safetensors.torch.save_file)"
_DEEPEST = 3
"""How many dictionaries deep a state may lie."""
_SLACK = 2**20
"""Bytes that a zip may hold beyond twice its size; torch.save compresses nothing."""
_TRAINING = re.compile(r"optim|sched|scaler|momentum|callback|loops", re.IGNORECASE)
"""Entries that hold the state of a training and no weights."""


def read_states(path: Path, content: bytes) -> dict[str, State]:
    """The state dicts in a weights file, by where they lie: `""` where the file is one itself, else
    the names on the way there, as `state_dict` or `ema.model`.

    The format is told by the content, whatever the suffix. Raises `BadInput` where it holds none.
    """
    if _is_safetensors(path, content):
        return {"": _read_safetensors(path, content)}
    if not content.startswith((b"PK", b"\x80")) and path.suffix.lower() not in (".pt", ".pth"):
        raise BadInput(f"{path} is neither .safetensors nor .pt (a file of torch.save): {EXPORT}")
    states = dict(_states(read_torch(path, content), ()))
    if not any(states.values()):
        raise BadInput(f"{path} holds no state dict of tensors: {EXPORT}")
    return states


def read_state(path: Path, content: bytes) -> State:
    """The state dict in a weights file. Raises `BadInput` where it holds none or several."""
    states = read_states(path, content)
    if len(states) > 1:
        raise BadInput(
            f"{path} holds several state dicts ({', '.join(map(repr, states))}): save one alone"
        )
    return next(iter(states.values()))


def read_torch(path: Path, content: bytes) -> Any:
    """What a file of torch.save holds, tensors and plain containers. Raises `BadInput` where it
    holds other objects.
    """
    _check_zip(path, content)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            # Of another pickle protocol; what follows says what to do.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises many kinds, among them the pickle module's, for damaged files and for refused
        # objects alike.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise BadInput(_never_unpickled(path, refused[1] if refused else "")) from error


def _never_unpickled(path: Path, kind: str) -> str:
    what = (
        f"holds a pickled {kind}, a whole model perhaps,"
        if kind
        else "is damaged or a pickled object,"
    )
    return (
        f"{path} {what} which is never unpickled: where it was made, save "
        f"torch.save(model.state_dict(), FILE), or {EXPORT}"
    )


def _is_safetensors(path: Path, content: bytes) -> bool:
    length = int.from_bytes(content[:8], "little")
    return path.suffix.lower() == ".safetensors" or (
        content[8:9] == b"{" and length <= len(content) - 8
    )


def _read_safetensors(path: Path, content: bytes) -> State:
    try:
        state: State = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BadInput(
            f"{path} is not complete safetensors ({one_line(error)}): get or write it again"
        ) from error
    return state


def _check_zip(path: Path, content: bytes) -> None:
    """Refuse archives that unpack to more than they are, before anything is unpacked."""
    if not content.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise BadInput(_never_unpickled(path, "")) from error
    size = sum(member.file_size for member in members)
    if size > 2 * len(content) + _SLACK:
        raise BadInput(
            f"{path} would unpack to {size:,} bytes from {len(content):,}, which torch.save never "
            f"writes: {EXPORT}"
        )
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise BadInput(
            f"{path} is a TorchScript archive: give a function that returns torch.jit.load of it, "
            "as FILE.py@make"
        )


class _Options(dict[str, Any]):
    """Stands in for Lightning's AttributeDict."""


class _Words:
    """Stands in for a path or a version, of which nothing is read."""

    def __init__(self, *_: object) -> None:
        pass


def _harmless() -> Iterator[Any]:
    """Classes that trainers save beside weights, as torch.serialization.safe_globals takes them."""
    yield argparse.Namespace
    yield np.ndarray
    yield np.dtype
    yield from (kind for kind in vars(np.dtypes).values() if isinstance(kind, type))
    module = importlib.import_module("numpy._core.multiarray")
    for home in ("numpy.core", "numpy._core"):
        yield module.scalar, f"{home}.multiarray.scalar"
        yield module._reconstruct, f"{home}.multiarray._reconstruct"
    for home in (
        "lightning.fabric.utilities.data",
        "lightning_fabric.utilities.data",
        "pytorch_lightning.utilities.parsing",
    ):
        yield _Options, f"{home}.AttributeDict"
    for home in ("pathlib", "pathlib._local"):
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
            yield _Words, f"{home}.{kind}"


_HARMLESS = list(_harmless())


def _states(content: Any, place: tuple[str, ...]) -> Iterator[tuple[str, State]]:
    if not isinstance(content, Mapping):
        return
    tensors = {
        key: value.detach()
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor) and not value.is_nested
    }
    if tensors:
        yield ".".join(place), tensors
    for key, value in content.items():
        if isinstance(key, str) and len(place) < _DEEPEST and not _TRAINING.search(key):
            yield from _states(value, (*place, key))
