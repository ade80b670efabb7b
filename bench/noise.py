"""Randomness as an argument.

Every random number of the suite is a pure function of (root seed, stream, image id, draw, site): no generator has state
that could leak from one use into another. Fresh randomness, expectation over transformation (EOT) and replay are three
ways to choose draws, and a result cannot depend on batch size, order, worker or resume point.

The bits are Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Its 128-bit key is a
hash of (root seed, stream, site, kind of number); its 256-bit counter is (block, image id, draw, 0). Numbers are always
born on the CPU, so that a tape is the same on every device.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Words = npt.NDArray[np.uint64]

_RESTART_BITS, _ITERATION_BITS, _INDEX_BITS = 16, 24, 24


class Stream(StrEnum):
    """What a random number is for. Numbers of different streams are independent under one root seed."""

    BUILD = "build"
    ATTACK = "attack"
    EVAL = "eval"
    TAPE = "tape"


def pack_draw(restart: int, iteration: int, index: int = 0) -> int:
    """The draw number of an attack's query: (restart, iteration, EOT index) in one 64-bit word."""
    if not (0 <= restart < 1 << _RESTART_BITS and 0 <= iteration < 1 << _ITERATION_BITS and 0 <= index < 1 << _INDEX_BITS):
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
        tape, taped: numbers of these stages come from another noise with the same rows; see `stage`.
    """

    root: int
    stream: Stream
    ids: npt.NDArray[np.int64]
    draws: Words
    device: torch.device = torch.device("cpu")
    site: str = ""
    tape: Noise | None = None
    taped: tuple[str, ...] = ()

    @classmethod
    def of(cls, root: int, stream: Stream, ids: object, draws: object = 0, device: str | torch.device = "cpu") -> Noise:
        """Noise for these image ids; `draws` is one number for all rows or one a row."""
        rows = np.asarray(ids, dtype=np.int64).reshape(-1)
        numbers = np.broadcast_to(np.asarray(draws, dtype=np.uint64), rows.shape)
        return cls(root, Stream(stream), rows, numbers, torch.device(device))

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, name: str) -> Noise:
        """The same rows, at a named place further inside; requests of different sites are independent."""
        return replace(self, site=f"{self.site}/{name}")

    def stage(self, name: str) -> Noise:
        """As `at`, for a stage of a defense that an attack's law may freeze alone: on the tape where it does."""
        if self.tape is None or name not in self.taped:
            return self.at(name)
        return replace(self.tape, site=self.site).at(name)

    def freeze(self, stages: Sequence[str], tape: Noise) -> Noise:
        """This noise, but with these stages on `tape`, whose rows belong to these rows."""
        return replace(self, tape=tape, taped=tuple(stages))

    def rows(self, index: slice | npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Noise:
        """The noise of a selection of rows (a slice, integers or booleans)."""
        tape = None if self.tape is None else self.tape.rows(index)
        return replace(self, ids=self.ids[index], draws=self.draws[index], tape=tape)

    def common(self) -> Noise:
        """Noise by draw alone: rows of the same draw get the same numbers, whatever their image."""
        tape = None if self.tape is None else self.tape.common()
        return replace(self, ids=np.zeros_like(self.ids), tape=tape)

    def to(self, device: str | torch.device) -> Noise:
        """The same numbers, delivered on another device."""
        tape = None if self.tape is None else self.tape.to(device)
        return replace(self, device=torch.device(device), tape=tape)

    def uniform(self, site: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform numbers in [0, 1), multiples of 2^-24: float32 (rows, *shape)."""
        halves = self._words("uniform", site, shape).view(np.uint32)[:, : _size(shape)]
        return self._deliver((halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24), shape)

    def normal(self, site: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Standard normal numbers by Box and Muller's transform: float32 (rows, *shape).

        Computed in float64 and rounded once, so that the last bit of a platform's `log` and `cos` does not show.
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
        source = np.random.Philox(key=_key(self.root, self.stream, f"{self.site}/{site}", kind))
        state = source.state
        # NumPy steps the 256-bit counter before its first block.
        for row, (image, draw) in enumerate(zip(self.ids.astype(np.uint64), self.draws, strict=True)):
            state["state"]["counter"] = _before(int(image), int(draw))
            state["buffer_pos"] = 4
            source.state = state
            words[row] = source.random_raw(count)
        return words

    def _deliver(self, values: npt.NDArray[np.float32], shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).reshape(len(self), *shape).to(self.device)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _before(image: int, draw: int) -> Words:
    """The 256-bit counter, lowest word first, that is one before (0, image, draw, 0)."""
    counter = ((image << 64 | draw << 128) - 1) % (1 << 256)
    return np.array([counter >> shift & (2**64 - 1) for shift in (0, 64, 128, 192)], dtype=np.uint64)


@lru_cache(maxsize=4096)
def _key(root: int, stream: Stream, site: str, kind: str) -> Words:
    text = f"{root}\x00{stream}\x00{site}\x00{kind}".encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=16, person=b"bench.noise").digest(), dtype="<u8")


# Attack-side laws: which draws a query of the defense sees ---------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """Where an attack stands: numbers that name its next query of the defense."""

    restart: int = 0
    iteration: int = 0


@dataclass(frozen=True)
class Law:
    """A randomness law: how the attack's queries draw the defense's randomness.

    fresh      one new draw a query
    eot        k new draws a query, averaged (Athalye et al. 2018)
    replay     one fixed tape an image, the same in every query, on which the attack is judged as well
    replay-set k fixed tapes an image, averaged
    common     one fixed tape for all images

    Under replay, `freeze` names the stages of the defense that are on the tape; the others draw freshly. Empty means all.

    The judge has a law of its own, `judging`, which no attack can choose.
    """

    name: str = "fresh"
    k: int = 1
    average: str = "loss"
    freeze: tuple[str, ...] = ()

    @property
    def taped(self) -> bool:
        """Whether some draws are the same in every query, so that the judge can repeat them too."""
        return self.name in ("replay", "replay-set", "common")

    @property
    def fixed(self) -> bool:
        """Whether all queries read the same function."""
        return self.taped and not self.freeze

    @property
    def deterministic(self) -> bool:
        """Whether the attacked function of one image is fixed, so that a success stays one."""
        return self.fixed and self.k == 1

    def draws(self, query: Query) -> tuple[Stream, list[int]]:
        """Stream and draw numbers of one query."""
        if self.name == _JUDGE:
            return Stream.EVAL, list(range(self.k))
        if self.fixed:
            return Stream.TAPE, list(range(self.k))
        return Stream.ATTACK, [pack_draw(query.restart, query.iteration, j) for j in range(self.k)]

    def __str__(self) -> str:
        options = [f"average={self.average}"] if self.average != "loss" else []
        options += [f"freeze={'+'.join(self.freeze)}"] if self.freeze else []
        options += [f"k={self.k}"] if self.name in ("eot", "replay-set") else []
        return f"{self.name}:{','.join(options)}" if options else self.name


_JUDGE = "judge"


def judging(draws: int) -> Law:
    """The judge's law: draws of the evaluation stream, which no attack ever sees."""
    return Law(_JUDGE, draws)


# Hooks and the one scope that may touch global generators -----------------------------------------------------------------


@contextmanager
def inject(network: nn.Module, noise: Noise, at: Mapping[str, Callable[[Noise, Tensor], Tensor]]) -> Iterator[None]:
    """Let functions of (noise, output) change the outputs of submodules during one forward pass.

    Each function gets the noise at its submodule's path, so numbers do not depend on the order of calls. A pass that is computed
    again later (gradient checkpointing) needs the block inside what is computed again.

        with inject(net, noise, {"layer3": lambda n, h: h + 0.1 * n.normal("gauss", tuple(h.shape[1:]))}):
            logits = net(images)
    """
    handles = []
    try:
        for path, change in at.items():
            local = noise.at(path)

            def hook(
                _module: nn.Module,
                _inputs: object,
                output: Tensor,
                change: Callable[[Noise, Tensor], Tensor] = change,
                local: Noise = local,
            ) -> Tensor:
                return change(local, output)

            handles.append(network.get_submodule(path).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python inside the block, and leave them as found.

    The only place of the suite that touches them: for module construction, third-party attack libraries and opaque models.
    """
    python, numpy = random.getstate(), np.random.get_state()
    waiting = dict(_waiting_seeds())
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        # torch.manual_seed would also queue a seed for a GPU that is not in use yet, and so leak out of the block.
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
    """Where torch keeps the seeds of a GPU that is not in use yet, until it is; a library's seeds must not wait there."""
    return vars(getattr(torch.cuda, "_lazy_seed_tracker", SimpleNamespace()))


def generators() -> tuple[object, ...]:
    """A comparable snapshot of the global generators."""
    kind, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    cuda = tuple(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
    return (
        torch.get_rng_state().numpy().tobytes(),
        (kind, np.asarray(words).tobytes(), position, has_gauss, gauss),
        random.getstate(),
        cuda,
        tuple(_waiting_seeds().values()),
    )
