"""Artifacts: what is expensive to make and follows from its identity, such as a trained network,
made once a machine and kept.

    <cache>/<kind>/<hash>/          the artifact: its files, and `identity.json` with the identity
                                    and each file's SHA-256
    <cache>/<kind>/.work-<hash>/    what an unfinished one left; the next try goes on from there
    <cache>/<kind>/.claim-<hash>/   somebody makes it now

The cache is $BENCH_CACHE, else $XDG_CACHE_HOME/adversarial-bench, else ~/.cache/adversarial-bench.
Nothing in it is a result: it may be deleted at any time, and what is needed again is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.storage.claims import Claim, claimed
from bench.storage.files import check_folder, make_folder, write_whole, writing
from bench.storage.identity import identity_hash

ABOUT = "identity.json"
POLL_SECONDS = 0.2

Make = Callable[[Path], None]
"""Fills a folder with an artifact's files. What it finds there is its own work of before; it writes
files whole.
"""


def cache_root() -> Path:
    """The folder of all artifacts; it need not exist."""
    own, base = os.environ.get("BENCH_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    return (Path(base) if base else Path.home() / ".cache") / "adversarial-bench"


@contextmanager
def empty_cache() -> Iterator[None]:
    """Another cache inside the block, empty at first and gone afterwards: what is made there is
    made anew. Not for threads.
    """
    with tempfile.TemporaryDirectory(prefix="bench-cache-") as folder:
        before = os.environ.get("BENCH_CACHE")
        os.environ["BENCH_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("BENCH_CACHE")
            if before is not None:
                os.environ["BENCH_CACHE"] = before


class NotStored(Exception):
    """An artifact would have to be made, where only stored ones are wanted."""


_ONLY_STORED = ContextVar("only_stored", default=False)


@contextmanager
def only_stored() -> Iterator[None]:
    """Inside the block nothing is made: an artifact that is not there raises `NotStored`."""
    token = _ONLY_STORED.set(True)
    try:
        yield
    finally:
        _ONLY_STORED.reset(token)


def artifact(
    kind: str, identity: Mapping[str, object], make: Make, assist: Make | None = None
) -> Path:
    """The folder of an artifact, made now unless it is there.

    Of several callers, processes or threads, one makes it and the others wait, or assist. What an
    interrupted one had written is handed to the next one. A damaged artifact is made again.

    Args:
        kind: what it is, in the words of a folder's name.
        identity: everything that can change a number in it, as JSON takes it, a version of the code
            that makes it included.
        make: makes it.
        assist: what a caller does, again and again, while another one makes it: a share of the
            work, in the maker's folder.

    Raises `BadInput` where the cache cannot be written, `NotStored` inside `only_stored`, and
    whatever `make` raises.
    """
    plain = json.loads(json.dumps(identity, allow_nan=False))
    name = identity_hash(plain)
    home = cache_root() / kind
    folder = home / name
    if _is_whole(folder, plain):
        return folder
    if _ONLY_STORED.get():
        raise NotStored(f"{kind}/{name}")
    _check_writable(home)
    waited = False
    while not _is_whole(folder, plain):
        with claimed(home / f".claim-{name}") as claim:
            # Somebody may have finished it just before the claim.
            if claim and not _is_whole(folder, plain):
                _put(claim, home / f".work-{name}", folder, plain, make)
            if claim:
                continue
        if not waited:
            print(
                f"{'waiting for' if assist is None else 'assisting'} another process that makes "
                f"{kind}/{name}",
                file=sys.stderr,
                flush=True,
            )
        waited = True
        work = home / f".work-{name}"
        if assist is not None and work.exists():
            _assist(assist, work)
        time.sleep(POLL_SECONDS)
    return folder


def _assist(assist: Make, work: Path) -> None:
    """A share of the work, unless its folder goes meanwhile: then it is done."""
    try:
        assist(work)
    except FileNotFoundError:
        if work.exists():
            raise


def _check_writable(home: Path) -> None:
    try:
        check_folder(home)
    except OSError as error:
        raise BadInput(
            f"cannot write the cache folder {home} ({error.strerror}): set BENCH_CACHE to a folder "
            "that can be written"
        ) from error


def _put(claim: Claim, work: Path, folder: Path, identity: dict[str, Any], make: Make) -> None:
    """Make the artifact in its work folder, describe it, and rename it into place.

    Where another process took over the claim meanwhile, the work is that one's, whatever became of
    ours.
    """
    try:
        with writing(work):
            make_folder(work)
        make(work)
        _clear_unfinished(work)
        about = {"identity": identity, "files": _hashes(work)}
        described = (json.dumps(about, indent=1, sort_keys=True) + "\n").encode()
        if claim.held():
            write_whole(work / ABOUT, described)
            _replace(folder, work)
    except Exception:
        if claim.held():
            raise


def _clear_unfinished(work: Path) -> None:
    """Remove the files that a killed process was writing."""
    for path in work.rglob(".tmp-*"):
        path.unlink(missing_ok=True)


def _replace(folder: Path, work: Path) -> None:
    grave = folder.with_name(f".dead-{folder.name}")
    shutil.rmtree(grave, ignore_errors=True)
    if folder.exists():
        # A damaged one. Readers that hold its files open keep them.
        folder.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
    work.rename(folder)


def _is_whole(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether the artifact is there with all its files as they were written."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        return bool(about["identity"] == identity and about["files"] == _hashes(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file but the description, by its path inside."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / ABOUT)
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
