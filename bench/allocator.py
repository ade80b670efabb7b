"""How the C library gives freed memory back, for commands that allocate the same tensors again and
again.
"""

from __future__ import annotations

import ctypes
import os

# As in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST, _KEPT = 32 * 2**20, 512 * 2**20
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Have this process keep up to 512 MiB that it frees, in blocks of at most 32 MiB; returns
    whether that could be set.

    glibc gives such blocks back to the kernel, which clears each page that comes again: up to two
    fifths of a forward pass of 128 images. Threads other than the main one keep less. Nothing is
    set where the user has set the like, nor where the C library is another one.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc." in tunables or any(name in os.environ for name in _VARIABLES):
        return False
    try:
        library = ctypes.CDLL(None)
        return bool(
            library.mallopt(_MMAP_THRESHOLD, _LARGEST) and library.mallopt(_TRIM_THRESHOLD, _KEPT)
        )
    except (OSError, AttributeError, TypeError):
        return False
