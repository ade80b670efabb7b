"""How to compute: device, batch size and who is told of progress; nothing here changes an
outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from bench.engine.evaluation import Evaluation
from bench.errors import BadInput

MOST_ROWS = 1_000_000
"""No device holds more images at a time; a larger batch size is a slip."""

Progress = Callable[[Evaluation, int, int, float], None]
"""Called with no image when work on a shard begins, then for each finished shard: (evaluation,
images of the shard, images of the evaluation, share of the shard's images right under attack)."""


Compile = Literal["auto", "on", "off"]
"""Whether searches read faster forms of the networks: where the same up to rounding, in bfloat16
too, never; see `bench.engine.searching`."""


@dataclass(frozen=True)
class Execution:
    """How to run, never what: none of this can change an outcome, but by rounding.

    Attributes:
        device: where to compute.
        batch_size: most rows in one forward pass.
        progress: called at the beginning of each evaluation and for each finished shard.
        compile: whether searches may read faster forms of the networks inside a defense.
        weights: a folder of records; a trained defense whose weights lie beside one of them is read
            and not trained. See `bench.engine.trained.published_file`.
    """

    device: torch.device = torch.device("cpu")
    batch_size: int = 128
    progress: Progress | None = None
    compile: Compile = "off"
    weights: Path | None = None


def read_execution(
    device: str,
    batch_size: int | None,
    progress: Progress | None = None,
    compile: str = "off",
    weights: Path | None = None,
) -> Execution:
    """From what a user wrote; None is the device's default batch size.

    Raises:
        BadInput: where there is no such device, the batch size is none, or `compile` another word.
    """
    where = read_device(device)
    size = default_batch_size(where) if batch_size is None else check_batch_size(batch_size)
    return Execution(where, size, progress, _read_compile(compile), weights)


def _read_compile(text: str) -> Compile:
    for word in get_args(Compile):
        if text == word:
            return cast(Compile, word)
    raise BadInput(f"compile is {text!r}: give {' or '.join(get_args(Compile))}")


def read_device(text: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises `BadInput` where there is no such device."""
    text = text.strip().lower()
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise BadInput(f"unknown device {text!r}: use auto, cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise BadInput(f"device {text!r} is not supported: use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(
            f"no such GPU {text!r}: torch sees {torch.cuda.device_count()} of them; use --device "
            "cpu"
        )
    return device


def default_batch_size(device: torch.device) -> int:
    """Rows that keep a device busy without filling its memory."""
    return 1024 if device.type == "cuda" else 128


def check_batch_size(batch_size: int) -> int:
    """The batch size, if it is one."""
    if not isinstance(batch_size, int) or not 1 <= batch_size <= MOST_ROWS:
        raise BadInput(f"batch size is {batch_size}: give 1 to {MOST_ROWS}")
    return batch_size


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Full float32 and repeatable kernels on a GPU: TF32 convolutions would decide near ties
    otherwise.
    """
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = (
        False,
        False,
        True,
        False,
    )
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
