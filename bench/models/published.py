"""Published weights whose download has no checksum of its own: zips around a file that has one, and
files trusted on first use.
"""

from __future__ import annotations

import os
import shutil
import sys
import uuid
import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.request import Request, urlopen

from bench.errors import BadInput, Missing, one_line
from bench.storage.data_root import data_root
from bench.storage.download import check_length, digest_of, fetch, offline

_SECONDS = 30
_PAGE = (b"<!doctype", b"<html")


def unzipped(name: str, url: str, checksum: str) -> Path:
    """A file below the data root, else the member of that name in a zip beside it, else in the zip
    at `url`.

    Args:
        name: file name below the data root; the zip beside it is NAME.zip.
        url: of the zip.
        checksum: of the file inside, as `bench.storage.download.fetch` takes it.

    Raises `BadInput` where the file is another one, or is missing and cannot be downloaded.
    """
    path = data_root() / name
    archive = path.with_name(f"{path.name}.zip")
    if not path.exists():
        if not archive.exists():
            _obtain(url, archive, f"put the unpacked file at {path} ({checksum})")
        _place(path, lambda target: _extract(archive, path.name, target))
        # A zip around a wrong file is kept, so that the message of `fetch` can be followed up.
        if digest_of(path, checksum) == checksum:
            archive.unlink(missing_ok=True)
    return fetch(name, [], checksum)


def trusted(name: str, url: str, page: str) -> Path:
    """A file below the data root that nobody published a checksum for, else what `url` sends.

    The SHA-256 of the file at its first use is written to NAME.sha256 and holds from then on.

    Args:
        name: file name below the data root.
        url: where to download it.
        page: where a person can get it.

    Raises `BadInput` where the file has changed, or is missing and cannot be downloaded.
    """
    path = data_root() / name
    if not path.exists():
        _obtain(url, path, f"get it from {page} and put it at {path}")
    note = path.with_name(f"{path.name}.sha256")
    digest = digest_of(path, "sha256:").partition(":")[2]
    if not note.exists():
        _place(note, lambda target: target.write(f"{digest}\n".encode()))
    known = note.read_text(encoding="utf-8", errors="replace").strip()[:64]
    if known != digest:
        raise BadInput(
            f"{path} has SHA-256 {digest}, but {known} when it was first used: restore it, or "
            f"remove {note} to trust it"
        )
    return path


def _extract(archive: Path, member: str, target: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as source:
            shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, EOFError, OSError) as error:
        raise BadInput(
            f"{archive} is no zip that holds {member} ({one_line(error)}): remove it and get it "
            "again"
        ) from error


def _obtain(url: str, path: Path, instead: str) -> None:
    what = f"{path.name} is not in {path.parent} and cannot be downloaded"
    if offline():
        raise Missing(f"{what} ({offline()} is set): {instead}; it comes from {url}")
    print(f"bench: downloading {path.name} from {url}", file=sys.stderr, flush=True)
    try:
        with urlopen(Request(url, headers={"User-Agent": "bench"}), timeout=_SECONDS) as answer:
            _place(path, lambda target: _receive(answer, target), refuse=_is_page)
    except (OSError, HTTPException) as error:
        raise Missing(f"{what} ({one_line(error)}): {instead}; it comes from {url}") from error


def _receive(answer: HTTPResponse, target: BinaryIO) -> None:
    shutil.copyfileobj(answer, target)
    check_length(answer.headers.get("Content-Length"), target.tell())


def _is_page(path: Path) -> str:
    """Google Drive answers with a page instead of the file once its quota is used up."""
    with path.open("rb") as file:
        return (
            "a web page came instead of the file"
            if file.read(64).lstrip().lower().startswith(_PAGE)
            else ""
        )


def _place(
    path: Path, write: Callable[[BinaryIO], object], refuse: Callable[[Path], str] = lambda _: ""
) -> None:
    """Write a file so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            write(file)
        if reason := refuse(temporary):
            raise OSError(reason)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
