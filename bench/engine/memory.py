"""How much memory a computation may take, and how much one keeps for its backward pass."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.errors import BadInput

MEMORY_VARIABLE = "BENCH_MEMORY"
_SHARE = 0.5
_MEMINFO = Path("/proc/meminfo")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_FORM = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*([KMG]?)i?B?", re.IGNORECASE)


def read_size(text: str) -> int:
    """Bytes in `500M`, `4G` or `4GiB` (powers of 1024). Raises `BadInput` for anything else."""
    match = _FORM.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise BadInput(f"memory is {text!r}: write a size such as 500M or 4G")
    return size


def budget(device: torch.device) -> int:
    """Bytes that activations may take: BENCH_MEMORY, else half of what is free on the device.

    It decides how a gradient is computed, never what comes out.
    """
    given = os.environ.get(MEMORY_VARIABLE)
    if given:
        return read_size(given)
    return int(_SHARE * (_free_on_gpu(device) if device.type == "cuda" else free_bytes()))


def _free_on_gpu(device: torch.device) -> int:
    # What torch keeps for its next tensors counts as taken on the device, yet it is free for them.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def free_bytes() -> int:
    """Memory that this machine could give at once."""
    # Linux counts its file cache, which it gives back on demand, as taken in SC_AVPHYS_PAGES.
    if _MEMINFO.is_file():
        available = re.search(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text())
        if available:
            return int(available[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def limited(size: str | None) -> Iterator[None]:
    """Set the budget of this process and its children for a while; None changes nothing."""
    before = os.environ.get(MEMORY_VARIABLE)
    if size is not None:
        read_size(size)
        os.environ[MEMORY_VARIABLE] = size
    try:
        yield
    finally:
        os.environ.pop(MEMORY_VARIABLE, None)
        if before is not None:
            os.environ[MEMORY_VARIABLE] = before


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a computation failed because it asked for more memory than there is."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)


class SavedBytes:
    """Counts the bytes that autograd keeps for a backward pass inside the block, each storage once,
    but for `known` tensors.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        self.total = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._kept: list[Tensor] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            # Kept, so that no later storage gets the same address.
            self._kept.append(tensor)
            self.total += storage.nbytes()
        return tensor
