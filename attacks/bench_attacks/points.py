"""Points that were made elsewhere: read from files and records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from bench.errors import BadInput, one_line
from bench.plugins.registry import existing_file
from bench.results.outcomes import Outcomes
from bench.results.record import Points
from bench.results.store import read_bare_record

POINT_KEYS = ("points", "adversarial", "x_adv", "adv_complete", "x_test")
ID_KEYS = ("ids", "image_ids")


@dataclass(frozen=True)
class PointFile:
    """What a file holds: points as they came, and the ids of their images; None without ids."""

    points: Tensor
    ids: npt.NDArray[np.int64] | None


def read_source(text: str) -> PointFile:
    """Points of a file, or those that lie beside a record, with the ids of its images.

    Raises:
        BadInput: where there is neither, or what there is cannot be read.
    """
    path = record_path(text)
    if path is None:
        return read_points(text)
    outcomes, _, file = _beside(path)
    return PointFile(read_points(str(file)).points, outcomes.image_ids())


def sha256_of(text: str) -> str:
    """What identifies points by their content, wherever they lie."""
    path = record_path(text)
    if path is None:
        return hashlib.sha256(existing_file(text, _USE).read_bytes()).hexdigest()
    outcomes, points, _ = _beside(path)
    return hashlib.sha256(f"{points.sha256} {outcomes.ids}".encode()).hexdigest()


def record_path(text: str) -> Path | None:
    """The record that a path names, with or without `.json`, or by its id alone behind a folder;
    None where it names a file of points.
    """
    path = Path(text).expanduser()
    if path.suffix == ".json":
        return existing_file(text, _USE)
    try:
        named = path.with_name(f"{path.name}.json")
        found = [named] if named.is_file() else sorted(path.parent.glob(f"*--{path.name}.json"))
        return found[0] if len(found) == 1 and not path.is_file() else None
    except (OSError, ValueError):
        return None


def _beside(path: Path) -> tuple[Outcomes, Points, Path]:
    """A record's outcomes, what it says of its points, and their file, which is as it says."""
    record = read_bare_record(path)
    file = path.parent / (record.points.file if record.points else "")
    if record.points is None or not file.is_file():
        raise BadInput(
            f"no points lie beside {path}: run the evaluation again, or name a record with its "
            "points"
        )
    if hashlib.sha256(file.read_bytes()).hexdigest() != record.points.sha256:
        raise BadInput(f"{file} is not what its record says: run the evaluation again")
    return record.outcomes, record.points, file


_USE = "transfer:FILE"


def read_points(path: str) -> PointFile:
    """Points and ids of a .npz, .safetensors or .pt file; nothing is unpickled.

    Raises:
        BadInput: where the file cannot be read, or holds no points.
    """
    file = existing_file(path, _USE)
    try:
        arrays = _read_arrays(file)
    except Exception as error:
        # Each format has errors of its own for each damage.
        raise BadInput(
            f"{path} cannot be read ({one_line(error)}): give a .npz, .safetensors or .pt file"
        ) from error
    key = next((key for key in POINT_KEYS if key in arrays), None)
    if key is None:
        raise BadInput(
            f"{path} holds {', '.join(map(str, arrays)) or 'nothing'}: name the points "
            f"{', '.join(POINT_KEYS[:-1])} or {POINT_KEYS[-1]}"
        )
    points = torch.as_tensor(arrays[key])
    ids = next((np.asarray(arrays[key]) for key in ID_KEYS if key in arrays), None)
    if ids is not None:
        _check_ids(path, ids, len(points))
    return PointFile(points, None if ids is None else ids.reshape(-1).astype(np.int64))


def _read_arrays(file: Path) -> Mapping[str, Any]:
    """Arrays by name; a bare tensor is called `points`."""
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as archive:
            wanted = [name for name in archive.files if name in (*POINT_KEYS, *ID_KEYS)]
            return {name: archive[name] for name in wanted or archive.files}
    if file.suffix == ".safetensors":
        return load_safetensors(file.read_bytes())
    content = torch.load(BytesIO(file.read_bytes()), map_location="cpu", weights_only=True)
    return content if isinstance(content, Mapping) else {"points": content}


def _check_ids(path: str, ids: npt.NDArray[Any], points: int) -> None:
    if ids.dtype.kind not in "iu" or ids.size != points or len(np.unique(ids)) != points:
        raise BadInput(f"{path} has ids that are not one number for each of its {points} points")


def channels_first(points: Tensor, shape: tuple[int, ...], path: str) -> Tensor:
    """Points as (n, C, H, W), of the images' shape."""
    channels, height, width = shape
    if tuple(points.shape[1:]) == shape:
        return points
    if tuple(points.shape[1:]) == (height, width, channels):
        return points.movedim(-1, 1)
    if channels == 1 and tuple(points.shape[1:]) == (height, width):
        return points[:, None]
    raise BadInput(
        f"{path} has points of shape {tuple(points.shape)}, the images are {shape}: give points of "
        "these images"
    )


def as_pixels(points: Tensor) -> Tensor:
    """Float32 in [0, 1]; what lies outside the box is left there."""
    if points.dtype == torch.uint8:
        return points.float() / 255
    if not points.dtype.is_floating_point:
        raise BadInput(f"the points are {points.dtype}: give uint8, or floats in [0, 1]")
    pixels = points.float()
    if not bool(torch.isfinite(pixels).all()):
        raise BadInput("some points are not finite: repair them")
    return pixels
