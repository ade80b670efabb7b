"""Randomness as an argument.

Every random number of the suite is a pure function of (root seed, stream, image id, draw, site): no
generator has state that could leak from one use into another. Fresh randomness, expectation over
transformation (EOT) and replay are three ways to choose draws, and a result cannot depend on batch
size, order, worker or resume point.

The bits are Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
Its 128-bit key is a hash of (root seed, stream, site, kind of number); its 256-bit counter is
(block, image id, draw, 0). On a GPU the same bits are computed there (`bench.philox`), so that
fixed noise is the same on every device: uniform numbers exactly, normal ones but for a last digit
once in 2^28.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench import philox

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
class _Key:
    """What a handle's numbers are made of, and what no defense may see.

    Attributes:
        root: the root seed.
        stream: what the numbers are for.
        ids: image id of each row, int64 (n,).
        draws: draw number of each row, uint64 (n,).
        device: where tensors are delivered; their values do not depend on it.
        site: the path of names that prefixes every request.
        fixed: the key of the same rows' fixed noise, where an attack fixes some stages alone.
        stages: the stages that take their numbers from `fixed`.
        shared: whether `ids` are all alike, so that the numbers belong to the draws alone.
        asked: of every place that was asked so far, whether it was asked for shared numbers; one
            book for all handles that come from one.
    """

    root: int
    stream: Stream
    ids: npt.NDArray[np.int64]
    draws: Words
    device: torch.device
    site: str = ""
    fixed: _Key | None = None
    stages: tuple[str, ...] = ()
    shared: bool = False
    asked: dict[str, bool] = field(default_factory=dict)

    def map(self, change: Callable[[_Key], _Key]) -> _Key:
        """This key changed, and the fixed noise's likewise."""
        changed = change(self)
        return changed if self.fixed is None else replace(changed, fixed=change(self.fixed))

    def key(self, kind: str, name: str) -> Words:
        """Philox's key of numbers of this kind at this place."""
        place = joined(self.site, name)
        # Else a pass could compare: the row whose own numbers are the shared ones is image 0.
        if self.asked.setdefault(place, self.shared) != self.shared:
            raise ValueError(f"{name!r} is asked both for a row's own and for shared numbers")
        return philox_key(self.root, self.stream, place, kind)

    def halves(self, kind: str, name: str, count: int) -> Tensor:
        """As `words`, computed on the device: their halves, int64 (n, 2 count)."""
        first, second = (int(word) for word in self.key(kind, name))
        images, draws = (
            torch.from_numpy(np.array(rows).view(np.int64)).to(self.device)
            for rows in (self.ids, self.draws)
        )
        return philox.halves((first, second), images, draws, count)

    def words(self, kind: str, name: str, count: int) -> Words:
        """64-bit words for each row: (n, count)."""
        words = np.empty((len(self.ids), count), dtype=np.uint64)
        source = np.random.Philox(key=self.key(kind, name))
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


def _key(
    root: int,
    stream: Stream | str,
    ids: object,
    draws: object,
    device: str | torch.device,
    asked: dict[str, bool],
) -> _Key:
    rows = np.asarray(ids, dtype=np.int64).reshape(-1)
    numbers = np.broadcast_to(np.asarray(draws, dtype=np.uint64), rows.shape)
    return _Key(root, Stream(stream), rows, numbers, torch.device(device), asked=asked)


class _NoiseType(type):
    """Makes noise: a method of the class that its handles do not have."""

    def of(
        cls,
        root: int,
        stream: Stream | str,
        ids: object,
        draws: object = 0,
        device: str | torch.device = "cpu",
        frozen: Sequence[str] = (),
    ) -> Noise:
        """See `Noise`."""
        asked: dict[str, bool] = {}
        key = _key(root, stream, ids, draws, device, asked)
        if frozen:
            fixed = _key(root, Stream.FIXED, ids, 0, device, asked)
            key = replace(key, fixed=fixed, stages=tuple(frozen))
        return Noise(key)


class Noise(metaclass=_NoiseType):
    """Random numbers for a batch of images: one row an image, the same number of rows as images.

    All that a forward pass may know of its randomness. It does not say which images these are,
    whether an attack or the judge asks, or which draw it is. (No handle keeps a secret from code
    that means harm in one's own process.)

    The engine, tests and studies make one by `Noise.of(root, stream, ids, draws, device, frozen)`:
    the root seed, a `Stream`, an image id for each row (duplicates are allowed), one draw number
    for all rows or one a row, where tensors are delivered, and the names of the stages whose
    numbers come from the fixed noise of the same rows.
    """

    __slots__ = ("_key",)

    def __init__(self, key: _Key) -> None:
        self._key = key

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(
                f"noise has no {name!r}: it gives numbers (normal, uniform, integers) for each row "
                "and says neither which images these are nor who asks"
            )

    @property
    def device(self) -> torch.device:
        """Where tensors are delivered; their values do not depend on it."""
        return self._key.device

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._key.ids)

    def at(self, name: str) -> Self:
        """The same rows, at a named place further inside; requests of different places are
        independent.
        """
        return self._over(replace(self._key, site=joined(self._key.site, name)))

    def stage(self, name: str) -> Self:
        """As `at`, for a stage of a defense that an attack may fix alone: its numbers are then
        fixed.
        """
        key = self._key
        if key.fixed is None or name not in key.stages:
            return self.at(name)
        return self._over(replace(key.fixed, site=joined(key.site, name)))

    def rows(self, index: slice | npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Self:
        """The noise of a selection of rows (a slice, integers or booleans)."""
        return self._over(
            self._key.map(lambda one: replace(one, ids=one.ids[index], draws=one.draws[index]))
        )

    def shared(self) -> Self:
        """Noise by draw alone: rows of one draw get the same numbers, whatever their image.

        It tells nothing of the images, since a name gives either a row's own numbers or shared
        ones: asking for both raises `ValueError`.
        """
        return self._over(
            self._key.map(lambda one: replace(one, ids=np.zeros_like(one.ids), shared=True))
        )

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform numbers in [0, 1), multiples of 2^-24: float32 (rows, *shape)."""
        if self.device.type != "cpu":
            return self._taken(philox.uniform(self._halves("uniform", name, shape)), shape)
        halves = self._words("uniform", name, shape).view(np.uint32)[:, : _size(shape)]
        return self._deliver(
            (halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24), shape
        )

    def normal(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Standard normal numbers by Box and Muller's transform: float32 (rows, *shape).

        Computed in float64 and rounded once, so that the last bit of a platform's `log` and `cos`
        does not show.
        """
        if self.device.type != "cpu":
            return self._taken(philox.normal(self._halves("normal", name, shape)), shape)
        halves = self._words("normal", name, shape).view(np.uint32).astype(np.float64)
        radius = np.sqrt(-2 * np.log((halves[:, 0::2] + 1) * 2.0**-32))
        angle = halves[:, 1::2] * (2 * np.pi * 2.0**-32)
        pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        flat = pairs.reshape(len(self), 2 * pairs.shape[1])
        return self._deliver(flat[:, : _size(shape)].astype(np.float32), shape)

    def integers(self, name: str, low: int, high: int | Tensor) -> Tensor:
        """Uniform integers in [low, high), `high` one number or one a row: int64 (rows,).

        The bias of multiplying a 24-bit uniform number is below (high - low) / 2^24.
        """
        span = torch.as_tensor(high, device=self.device) - low
        if bool((span <= 0).any()):
            raise ValueError(f"no integer lies in [{low}, {high})")
        return low + (self.uniform(name) * span).floor().long()

    def _over(self, key: _Key) -> Self:
        made = object.__new__(type(self))
        made._key = key
        return made

    def _words(self, kind: str, name: str, shape: tuple[int, ...]) -> Words:
        return self._key.words(kind, name, (_size(shape) + 1) // 2)

    def _halves(self, kind: str, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._key.halves(kind, name, (_size(shape) + 1) // 2)

    def _taken(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        return values[:, : _size(shape)].reshape(len(self), *shape)

    def _deliver(self, values: npt.NDArray[np.float32], shape: tuple[int, ...]) -> Tensor:
        return (
            torch.from_numpy(np.ascontiguousarray(values))
            .reshape(len(self), *shape)
            .to(self.device)
        )


class BuildNoise(Noise):
    """What builds a defense draws from: one row of the construction stream, and more than a
    forward pass may do with it.

    Args:
        seed: the build seed.
        draw: another number gives other numbers under the same seed.
        device: where tensors are delivered.
    """

    __slots__ = ()

    def __init__(self, seed: int, draw: int = 0, device: str | torch.device = "cpu") -> None:
        super().__init__(_key(seed, Stream.BUILD, [0], draw, device, {}))

    @property
    def identity(self) -> list[int | str]:
        """What its numbers follow from, for the identity of an artifact made with them."""
        return [self._key.root, str(self._key.stream), self._key.site]

    def to(self, device: str | torch.device) -> BuildNoise:
        """The same numbers, delivered on another device."""
        return self._over(replace(self._key, device=torch.device(device)))

    def seed(self, name: str) -> int:
        """A 63-bit seed for a generator that takes no noise."""
        return seed_of(self, name)

    def numbered(self, name: str, numbers: object, draws: object = 0) -> Noise:
        """Noise of rows of one's own, such as synthetic images: a row is a pure function of its
        number, its draw and this place.

        Args:
            name: of the place; one that is not used otherwise.
            numbers: of the rows, integers of 0 or more (n,).
            draws: one number for all rows, or one a row.
        """
        key = self._key
        # The second slash sets these rows apart from this handle's own, whose names are not empty.
        inside = f"/{key.site}" if key.site else ""
        rows = _key(key.root, key.stream, numbers, draws, key.device, key.asked)
        return Noise(replace(rows, site=joined(inside, name)))


def renew(noise: Noise) -> None:
    """Make a handle ready for another pass: it may be asked anew for a row's own or for shared
    numbers.
    """
    noise._key.asked.clear()


def seed_of(noise: Noise, name: str) -> int:
    """A 63-bit seed of one row, for libraries and opaque models that take no noise."""
    if len(noise) != 1:
        raise ValueError("a seed belongs to one row")
    return int(noise._key.words("seed", name, 1)[0, 0] >> np.uint64(1))


_INNER_SLASH = "\x01"


def joined(site: str, name: str) -> str:
    """A name as the last step of a path: different steps give different paths, since a slash
    inside a name is written as a character that no name holds.

    Raises `ValueError` for an empty name, or one with control characters.
    """
    if not name or min(name) < " ":
        raise ValueError(f"{name!r} names no place: give it letters or digits")
    return f"{site}/{name.replace('/', _INNER_SLASH)}"


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
