"""`transfer:FILE`: points that were made elsewhere, judged here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from safetensors.torch import load as load_safetensors
from torch import Tensor

from bench.attack import Attack, AttackOutput
from bench.defense import Card
from bench.errors import BadInput, one_line
from bench.plugins.registry import existing_file
from bench.results.findings import Finding
from bench.spec import Params
from bench.threat import ThreatModel
from bench.victim import Images, Victim

POINT_KEYS = ("points", "adversarial", "x_adv", "adv_complete", "x_test")
ID_KEYS = ("ids", "image_ids")


class TransferParams(Params):
    """Parameters of `transfer`."""

    points: str = Field(description="the file of points: .npz, .safetensors or .pt", min_length=1)
    projected: bool = Field(
        False, description="project points that lie outside ball or box, instead of refusing them"
    )


@dataclass(frozen=True)
class PointFile:
    """What a file holds: points as they came, and the ids of their images; None without ids."""

    points: Tensor
    ids: npt.NDArray[np.int64] | None


class Transfer(Attack[TransferParams]):
    """Points that were made elsewhere, on another model or by another program, judged here.

    The file holds points (n, C, H, W) or (n, H, W, C), uint8 or float in [0, 1], and may hold the
    ids of their images. With ids they are matched by id, else by the evaluation order. They must
    lie in ball and box.
    """

    Params = TransferParams
    positional: ClassVar[str | None] = "points"
    card = Card(
        paper="Papernot et al. 2016, arXiv 1605.07277",
        note="no search: says how points of another source fare, and nothing of an attack on this "
        "defense",
    )

    @cached_property
    def _file(self) -> PointFile:
        return read_points(self.params.points)

    @property
    def contents(self) -> Mapping[str, str]:
        """The file by its content, wherever it lies."""
        file = existing_file(self.params.points, "transfer:FILE")
        return {"points": f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"}

    def look(self, images: Images, threat: ThreatModel) -> Iterable[str]:
        """Refuse points that are of other images, or that lie outside ball or box."""
        origin = images.pixels()
        points = self._matched(images.ids, np.arange(len(images)), tuple(origin.shape[1:]))
        outside = ~threat.contains(points, origin)
        if not bool(outside.any()):
            return
        far = float(threat.distance(points[outside], origin[outside]).max())
        told = (
            f"{int(outside.sum())} of {len(points)} points lie outside {threat} or [0, 1], the "
            f"farthest at {far:.4g}"
        )
        if not self.params.projected:
            raise BadInput(
                f"{told}: give their eps, or projected=true to project them; points in another "
                "order than the images look like this, too"
            )
        yield f"{told}: they are projected"

    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> AttackOutput:
        """The points of these images; the engine projects those that lie outside."""
        points = self._matched(victim.ids, victim.places, tuple(images.shape[1:]))
        name = Path(self.params.points).name
        message = f"the points of {name} were made elsewhere: no attack was run on this defense"
        return AttackOutput(
            points.to(images.device),
            findings=(Finding(name="transfer", verdict="note", message=message),),
        )

    def _matched(
        self, ids: npt.NDArray[np.int64], places: npt.NDArray[np.int64], shape: tuple[int, ...]
    ) -> Tensor:
        """The points of the images with these ids, at these places of the evaluation order."""
        file = self._file
        points = _channels_first(file.points, shape, self.params.points)
        if file.ids is None:
            if len(places) and int(places.max()) >= len(points):
                raise BadInput(
                    f"{self.params.points} holds {len(points)} points, fewer than the images: give "
                    f"--n {len(points)}, or a file with ids"
                )
            return _as_pixels(points[torch.from_numpy(places)])
        order = np.argsort(file.ids)
        at = np.searchsorted(file.ids, ids, sorter=order).clip(max=len(order) - 1)
        rows = order[at]
        missing = ids[file.ids[rows] != ids]
        if len(missing):
            raise BadInput(
                f"{self.params.points} lacks the points of {len(missing)} images, the first of id "
                f"{missing[0]}: give --n, or a file with all of them"
            )
        return _as_pixels(points[torch.from_numpy(rows)])


# Reading ------------------------------------------------------------------------------------------


def read_points(path: str) -> PointFile:
    """Points and ids of a .npz, .safetensors or .pt file; nothing is unpickled.

    Raises:
        BadInput: where the file cannot be read, or holds no points.
    """
    file = existing_file(path, "transfer:FILE")
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


def _channels_first(points: Tensor, shape: tuple[int, ...], path: str) -> Tensor:
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


def _as_pixels(points: Tensor) -> Tensor:
    """Float32 in [0, 1]; what lies outside the box is left there."""
    if points.dtype == torch.uint8:
        return points.float() / 255
    if not points.dtype.is_floating_point:
        raise BadInput(f"the points are {points.dtype}: give uint8, or floats in [0, 1]")
    pixels = points.float()
    if not bool(torch.isfinite(pixels).all()):
        raise BadInput("some points are not finite: repair them")
    return pixels
