"""Files that somebody else publishes: found under the data root or downloaded into it, and never
used unverified.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from bench.errors import BadInput, Missing, one_line
from bench.storage.data_root import data_root
from bench.storage.missing import is_planning

_OFFLINE = ("BENCH_OFFLINE", "HF_HUB_OFFLINE")
_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64}
_CHUNK = 1 << 20
_SECONDS = 30
_RANGE_NOT_SATISFIABLE = 416


def fetch(name: str, urls: Sequence[str], checksum: str, folder: Path | None = None) -> Path:
    """A published file, verified: the one that is there, else a download.

    An interrupted download is resumed. Processes that want the same file wait for the first of
    them.

    Args:
        name: file name below the folder, such as `mnist/train-images-idx3-ubyte.gz`.
        urls: where to get it, best first.
        checksum: `md5:`, `sha1:` or `sha256:` and all hexadecimal digits.
        folder: where it is kept; the data root by default.

    Raises:
        BadInput: where the file is another one.
        Missing: where it is missing and cannot be downloaded.
    """
    _check(checksum)
    path = (folder or data_root()) / name
    if not os.path.exists(path):  # Not Path.exists, which raises where a folder may not be entered.
        _download(path, urls, checksum)
    actual = digest_of(path, checksum)
    if actual != checksum:
        raise BadInput(
            f"{path} has {actual}, not {checksum}: it is damaged or another version; remove it or "
            "replace it"
        )
    return path


def digest_of(path: Path, like: str) -> str:
    """The checksum of a file, written as `like` is: `md5:...`, `sha1:...` or `sha256:...`."""
    try:
        state = path.stat()
        return _remembered(path, like, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise BadInput(
            f"cannot read {path} ({error.strerror}): check the file and its permissions"
        ) from error


@cache
def _remembered(path: Path, like: str, size: int, changed: int) -> str:
    """Size and time of change are arguments so that a file that was replaced is read again."""
    return _digest(path, like)


def _digest(path: Path, like: str) -> str:
    algorithm = like.partition(":")[0]
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _check(checksum: str) -> None:
    algorithm, _, digits = checksum.partition(":")
    if len(digits) != _DIGITS.get(algorithm) or not set(digits) <= set("0123456789abcdef"):
        raise BadInput(
            f"checksum {checksum!r} is none: write md5:, sha1: or sha256: and all lower-case "
            "hexadecimal digits"
        )


def offline() -> str:
    """The environment variable or the option that forbids downloads; empty where none does."""
    if is_planning():
        return "--dry-run"
    return next(
        (
            name
            for name in _OFFLINE
            if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
        ),
        "",
    )


def _download(path: Path, urls: Sequence[str], checksum: str) -> None:
    if offline() or not urls:
        raise Missing(
            _missing(
                path,
                urls,
                checksum,
                f"{offline()} is set" if offline() else "nobody offers it for download",
            )
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial(path) as partial:
            failures = _fill(partial, path, urls, checksum)
    except OSError as error:
        raise Missing(_missing(path, urls, checksum, one_line(error))) from error
    if failures:
        raise Missing(_missing(path, urls, checksum, "; ".join(failures)))


def _missing(path: Path, urls: Sequence[str], checksum: str, why: str) -> str:
    source = f"get it from {' or '.join(urls)} and" if urls else "get it and"
    return (
        f"{path.name} is not in {path.parent} and cannot be downloaded ({why}): {source} put it at "
        f"{path} ({checksum})"
    )


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[BinaryIO]:
    """The unfinished file beside `path`, opened to append and held by this process alone."""
    partial = path.with_name(f"{path.name}.part")
    while True:
        with partial.open("ab") as file:
            # Waits for others; the system drops the lock with the process.
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_still(file, partial):
                yield file
                if _is_still(file, partial) and not partial.stat().st_size:
                    partial.unlink()
                return


def _is_still(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is the one at `path`: whoever held it before may have renamed
    it away.
    """
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _fill(partial: BinaryIO, path: Path, urls: Sequence[str], checksum: str) -> list[str]:
    """Download and put the file in place once the checksum holds; the failures, none where
    it does.
    """
    failures = []
    if path.exists():  # Somebody else was faster.
        os.unlink(partial.name)
        return []
    for url in urls:
        print(f"bench: downloading {path.name} from {url}", file=sys.stderr, flush=True)
        try:
            actual = _obtain(partial, url, checksum)
        except (OSError, HTTPException) as error:
            failures.append(f"{url}: {one_line(error)}")
            continue
        if actual == checksum:
            os.replace(partial.name, path)
            return []
        failures.append(f"{url} sends {actual}")
    return failures


def _obtain(partial: BinaryIO, url: str, checksum: str) -> str:
    """Checksum of what a URL sends. A wrong one is dropped, and asked for once more where it began
    with an old beginning.
    """
    while True:
        resumed = _append(partial, url)
        actual = _digest(Path(partial.name), checksum)
        if actual == checksum:
            return actual
        partial.truncate(0)
        if not resumed:
            return actual


def _append(partial: BinaryIO, url: str) -> int:
    """Ask for what is missing and write it; returns how much was there and kept."""
    held = partial.seek(0, os.SEEK_END)
    request = Request(
        url, headers={"User-Agent": "bench", **({"Range": f"bytes={held}-"} if held else {})}
    )
    try:
        with urlopen(request, timeout=_SECONDS) as answer:
            if held and getattr(answer, "status", None) != 206:
                held = partial.truncate(0)
            received = 0
            while chunk := answer.read(_CHUNK):
                received += partial.write(chunk)
            partial.flush()
            check_length(answer.headers.get("Content-Length"), received)
    except HTTPError as error:
        if error.code != _RANGE_NOT_SATISFIABLE:
            raise
    return held


def check_length(announced: str | None, received: int) -> None:
    """Raise `ConnectionError` where less came than the header announced: `http.client` ends a
    broken answer without a word.
    """
    if announced is not None and announced.strip() != str(received):
        raise ConnectionError(f"the connection broke after {received} of {announced} bytes")
