"""The file of points beside a record."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from bench.errors import BadInput, one_line
from bench.results.record import Record

_ADVICE = "run the evaluation again (`bench verify` re-runs the attack and keeps no points)"


def read_points(record: Record, folder: Path) -> npt.NDArray[np.float32]:
    """Where the attack ended, float32 (n, C, H, W), out of the file that lies in `folder`.

    Raises:
        BadInput: where the points were not kept, their file is missing, or it is another one than
            the record's, by its SHA-256.
    """
    if record.points is None:
        raise BadInput(f"the points of record {record.id} were not kept: {_ADVICE}")
    file = file_of_points(record, folder)
    data = bytes_of_points(record, folder, _ADVICE)
    if data is None:
        raise BadInput(f"the points of record {record.id} are missing ({file}): {_ADVICE}")
    try:
        points = load(data)["points"]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadInput(f"{file} holds no points ({one_line(error)}): {_ADVICE}") from error
    if points.dtype != np.float32 or points.ndim != 4 or len(points) != record.metrics.n:
        shape = tuple(points.shape)
        raise BadInput(f"{file} holds {points.dtype} {shape}, not this record's points: {_ADVICE}")
    return points


def file_of_points(record: Record, folder: Path) -> Path:
    """Where the points of a record lie that were kept."""
    assert record.points is not None
    return folder / Path(record.points.file).name


def bytes_of_points(record: Record, folder: Path, advice: str) -> bytes | None:
    """The file of points as it was written; None where there is none.

    Args:
        record: one whose points were kept.
        folder: where the file lies.
        advice: what to do where it is another file.

    Raises:
        BadInput: where it cannot be read, or its SHA-256 is not the record's.
    """
    file = file_of_points(record, folder)
    if not file.is_file():
        return None
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {file} ({error.strerror}): check its permissions") from error
    assert record.points is not None
    if hashlib.sha256(data).hexdigest() != record.points.sha256:
        raise BadInput(
            f"{file} does not hold the points of this record (its SHA-256 differs): {advice}"
        )
    return data
