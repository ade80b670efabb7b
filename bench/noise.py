"""Randomness as an argument.

Every random number of the suite is a pure function of (root seed, stream, image id, draw, site): no
generator has state that could leak from one use into another. Fresh randomness, expectation over
transformation (EOT) and replay are three ways to choose draws, and a result cannot depend on batch
size, order, worker or resume point.

The bits are Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
Its 128-bit key is a hash of (root seed, stream, site, kind of number); its 256-bit counter is
(block, image id, draw, 0). Numbers are always born on the CPU, so that fixed noise is the same on
every device.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]

_RESTART_BITS, _ITERATION_BITS, _INDEX_BITS = 16, 24, 24


class Stream(StrEnum):
    """What a random number is for. Numbers of different streams are independent under one root
    seed.
    """

    BUILD = "build"
    ATTACK = "attack"
    EVAL = "eval"
    FIXED = "tape"  # the value is part of every number's key: another word gives other numbers


def pack_draw(restart: int, iteration: int, index: int = 0) -> int:
    """The draw number of an attack's query: (restart, iteration, EOT index) in one 64-bit word."""
    if not (
        0 <= restart < 1 << _RESTART_BITS
        and 0 <= iteration < 1 << _ITERATION_BITS
        and 0 <= index < 1 << _INDEX_BITS
    ):
        raise ValueError(f"draw ({restart}, {iteration}, {index}) is out of range")
    return (restart << _ITERATION_BITS | iteration) << _INDEX_BITS | index


@dataclass(frozen=True)
class Noise:
    """Random numbers for a batch of rows, one (image id, draw) per row; duplicates are allowed.

    Attributes:
        root: the root seed.
        stream: what the numbers are for.
        ids: image id of each row, int64 (n,).
        draws: draw number of each row, uint64 (n,).
        device: where tensors are delivered; their values do not depend on it.
        site: the name path inside the forward pass that prefixes every request.
        fixed_noise, fixed_stages: numbers of these stages come from another noise with the same
            rows; see `stage`.
    """

    root: int
    stream: Stream
    ids: npt.NDArray[np.int64]
    draws: Words
    device: torch.device = torch.device("cpu")
    site: str = ""
    fixed_noise: Noise | None = None
    fixed_stages: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        root: int,
        stream: Stream,
        ids: object,
        draws: object = 0,
        device: str | torch.device = "cpu",
    ) -> Noise:
        """Noise for these image ids; `draws` is one number for all rows or one a row."""
        rows = np.asarray(ids, dtype=np.int64).reshape(-1)
        numbers = np.broadcast_to(np.asarray(draws, dtype=np.uint64), rows.shape)
        return cls(root, Stream(stream), rows, numbers, torch.device(device))

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, name: str) -> Noise:
        """The same rows, at a named place further inside; requests of different sites are
        independent.
        """
        return replace(self, site=f"{self.site}/{name}")

    def stage(self, name: str) -> Noise:
        """As `at`, for a stage of a defense that an attack may fix alone: its numbers are then
        fixed.
        """
        if self.fixed_noise is None or name not in self.fixed_stages:
            return self.at(name)
        return replace(self.fixed_noise, site=self.site).at(name)

    def freeze(self, stages: Sequence[str], fixed_noise: Noise) -> Noise:
        """This noise, but with these stages on `fixed_noise`, whose rows belong to these rows."""
        return replace(self, fixed_noise=fixed_noise, fixed_stages=tuple(stages))

    def rows(self, index: slice | npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Noise:
        """The noise of a selection of rows (a slice, integers or booleans)."""
        fixed_noise = None if self.fixed_noise is None else self.fixed_noise.rows(index)
        return replace(self, ids=self.ids[index], draws=self.draws[index], fixed_noise=fixed_noise)

    def common(self) -> Noise:
        """Noise by draw alone: rows of the same draw get the same numbers, whatever their image."""
        fixed_noise = None if self.fixed_noise is None else self.fixed_noise.common()
        return replace(self, ids=np.zeros_like(self.ids), fixed_noise=fixed_noise)

    def to(self, device: str | torch.device) -> Noise:
        """The same numbers, delivered on another device."""
        fixed_noise = None if self.fixed_noise is None else self.fixed_noise.to(device)
        return replace(self, device=torch.device(device), fixed_noise=fixed_noise)

    def uniform(self, site: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform numbers in [0, 1), multiples of 2^-24: float32 (rows, *shape)."""
        halves = self._words("uniform", site, shape).view(np.uint32)[:, : _size(shape)]
        return self._deliver(
            (halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24), shape
        )

    def normal(self, site: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Standard normal numbers by Box and Muller's transform: float32 (rows, *shape).

        Computed in float64 and rounded once, so that the last bit of a platform's `log` and `cos`
        does not show.
        """
        halves = self._words("normal", site, shape).view(np.uint32).astype(np.float64)
        radius = np.sqrt(-2 * np.log((halves[:, 0::2] + 1) * 2.0**-32))
        angle = halves[:, 1::2] * (2 * np.pi * 2.0**-32)
        pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        flat = pairs.reshape(len(self), 2 * pairs.shape[1])
        return self._deliver(flat[:, : _size(shape)].astype(np.float32), shape)

    def integers(self, site: str, low: int, high: int | Tensor) -> Tensor:
        """Uniform integers in [low, high), `high` one number or one a row: int64 (rows,).

        The bias of multiplying a 24-bit uniform number is below (high - low) / 2^24.
        """
        span = torch.as_tensor(high, device=self.device) - low
        if bool((span <= 0).any()):
            raise ValueError(f"no integer lies in [{low}, {high})")
        return low + (self.uniform(site) * span).floor().long()

    def seed(self, site: str) -> int:
        """A 63-bit seed for one row's foreign generator. Only for a batch of one row."""
        if len(self) != 1:
            raise ValueError("a seed belongs to one row")
        return int(self._words("seed", site, (1,))[0, 0] >> np.uint64(1))

    def _words(self, kind: str, site: str, shape: tuple[int, ...]) -> Words:
        count = (_size(shape) + 1) // 2
        words = np.empty((len(self), count), dtype=np.uint64)
        source = np.random.Philox(
            key=philox_key(self.root, self.stream, f"{self.site}/{site}", kind)
        )
        state = source.state
        # NumPy steps the 256-bit counter before its first block.
        for row, (image, draw) in enumerate(
            zip(self.ids.astype(np.uint64), self.draws, strict=True)
        ):
            state["state"]["counter"] = _before(int(image), int(draw))
            state["buffer_pos"] = 4
            source.state = state
            words[row] = source.random_raw(count)
        return words

    def _deliver(self, values: npt.NDArray[np.float32], shape: tuple[int, ...]) -> Tensor:
        return (
            torch.from_numpy(np.ascontiguousarray(values))
            .reshape(len(self), *shape)
            .to(self.device)
        )


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _before(image: int, draw: int) -> Words:
    """The 256-bit counter, lowest word first, that is one before (0, image, draw, 0)."""
    counter = ((image << 64 | draw << 128) - 1) % (1 << 256)
    return np.array(
        [counter >> shift & (2**64 - 1) for shift in (0, 64, 128, 192)], dtype=np.uint64
    )


@lru_cache(maxsize=4096)
def philox_key(root: int, stream: Stream, site: str, kind: str) -> Words:
    """Philox's 128-bit key as two words; image and draw go into the counter instead."""
    text = f"{root}\x00{stream}\x00{site}\x00{kind}".encode()
    return np.frombuffer(
        hashlib.blake2b(text, digest_size=16, person=b"bench.noise").digest(), dtype="<u8"
    )


# The one scope that may touch global generators ---------------------------------------------------


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python inside the block, and leave them as
    they were.

    The only place of the suite that touches them: for module construction, third-party attack
    libraries and opaque models.
    """
    python, numpy = random.getstate(), np.random.get_state()
    waiting = dict(_waiting_seeds())
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        # torch.manual_seed would also queue a seed for a GPU that is not in use yet, and so leak
        # out of the block.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            _waiting_seeds().update(waiting)


def _waiting_seeds() -> dict[str, Any]:
    """Where torch keeps the seeds of a GPU that is not in use yet, until it is; a library's seeds
    must not wait there.
    """
    return vars(getattr(torch.cuda, "_lazy_seed_tracker", SimpleNamespace()))


def generators() -> tuple[object, ...]:
    """A comparable snapshot of the global generators."""
    kind, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    cuda = (
        tuple(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all())
        if torch.cuda.is_initialized()
        else ()
    )
    return (
        torch.get_rng_state().numpy().tobytes(),
        (kind, np.asarray(words).tobytes(), position, has_gauss, gauss),
        random.getstate(),
        cuda,
        tuple(_waiting_seeds().values()),
    )
