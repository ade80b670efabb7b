"""State of an interrupted training run: one file, which appears whole and unpickles nothing."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.errors import BadInput
from bench.storage.files import write_whole


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers, texts and containers of them."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_whole(path, buffer.getvalue())


@contextmanager
def read_checkpoint(path: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    """What was written, for a run to take up inside the block. Raises `BadInput` for a file that
    does not fit, whatever fails.
    """
    try:
        yield torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise BadInput(f"{path} is no checkpoint of this training run: remove it") from error
