"""`bench view`: a folder of results as pages, served to this machine alone, or written as files."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, ClassVar
from urllib.parse import urlsplit

from bench.commands.asking import Asker, told
from bench.commands.trust import check_trusted
from bench.engine.execution import Execution
from bench.errors import BadInput
from bench.report.boards.make import boards
from bench.report.boards.protocol import read_board_file
from bench.report.page.board import page
from bench.report.pictures.contact import contact_sheet
from bench.report.pictures.record_page import Answers
from bench.report.pictures.seen import Images
from bench.report.pictures.site import JSON, Results, Site, read_results
from bench.report.reference import read_references
from bench.results.record import Record
from bench.results.store import read_record
from bench.storage.files import write_whole

ADDRESS, PORT = "127.0.0.1", 8780

_ASK = re.compile(r"records/([0-9a-f]{16})/(ask|path)-([0-9]{1,9})(?:-([0-9]{1,4}))?\.json")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_PATIENCE, _KEPT_ANSWERS = 0.25, 256


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        index: the page to open.
        records: how many records have a page.
        files, size: how many files, and their bytes.
    """

    index: Path
    records: int
    files: int
    size: int

    def __str__(self) -> str:
        return (
            f"{self.records} records in {self.files} files, {self.size / 1e6:.1f} MB: open "
            f"{self.index}"
        )


@dataclass(frozen=True)
class Shown:
    """A folder whose pages can be served or written."""

    site: Site
    asker: Asker


def prepare(
    folder: Path,
    execution: Execution,
    *,
    trust: bool,
    served: bool,
    compute: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Shown:
    """Read a folder of results.

    Args:
        folder: of records.
        execution: how to compute what is not stored.
        trust: run `FILE.py@NAME` of a record wherever that file is.
        served: whether pages may ask for more.
        compute: of how many images of each record the defense is asked beforehand.
        progress: is told which record is asked.

    Raises:
        BadInput: where there is no record, or one is damaged.
    """
    check: Callable[[Record], None] = _all_trusted if trust else check_trusted
    asker, images = Asker(execution, check), Images(check)
    results = read_results(folder)
    site: Site

    def answers(record: Record) -> Answers:
        if compute:
            progress(f"asking {record.title['defense']} under {record.title['attack']}")
            return _asked(record, site, asker, compute)
        return Answers(served, note=_obstacle(record, check))

    site = Site(results, images, _boards(folder, results), answers)
    return Shown(site, asker)


def _all_trusted(record: Record) -> None:
    """Every record may run what it names."""


def _boards(folder: Path, results: Results) -> str:
    if not results.records:
        return ""
    about = read_board_file(folder)
    files = {name: path for name, (_, path) in results.records.items()}
    made = boards(results.all(), about, files)
    pages = {name: f"records/{name}.html" for name in files}
    published = read_references(folder / about.reference) if about.reference else ()
    return page(
        made,
        results.failures,
        title=about.title,
        references=published,
        pages=pages,
        listed="records.html",
    )


def _obstacle(record: Record, check: Callable[[Record], None]) -> str:
    """Why the defense of a record cannot be asked; empty where it may be tried."""
    if any(str(source).startswith("python:") for source in record.sources.values()):
        return "They cannot be computed here: the record was made from a Python object."
    try:
        check(record)
    except BadInput as error:
        return f"They cannot be computed here: {error}."
    return ""


def _asked(record: Record, site: Site, asker: Asker, count: int) -> Answers:
    folder = site.results.records[record.id][1].parent
    places = range(min(count, record.metrics.n))
    pictures = bool(site.seen(record.id).which)
    try:
        asked = asker.answers(record, folder, places, 0, pictures=pictures)
    except Exception as error:
        return Answers(note=f"They could not be computed: {told(error)}.")
    return Answers(asked=dict(zip(places, asked, strict=True)))


def write_sheet(path: Path, out: Path, *, trust: bool) -> None:
    """Write the contact sheet of a record as PNG; its points lie beside it.

    Raises `BadInput` where the file is no record, no image of it can be shown, or nothing can be
    written.
    """
    record = read_record(path)
    images = Images(_all_trusted if trust else check_trusted)
    contact_sheet(record, images.seen(record, path.parent)).save(out)


# Files --------------------------------------------------------------------------------------------


def write(shown: Shown, out: Path) -> Written:
    """Write all pages and pictures into a new folder. Raises `BadInput` where something is there
    already, or nothing can be written.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise BadInput(f"{out} is there already: give a new folder")
    files = size = 0
    for path in shown.site.paths():
        found = shown.site.read(path)
        assert found is not None
        file = out / path
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, found[1])
        except OSError as error:
            raise BadInput(f"cannot write {file} ({error.strerror}): give another --out") from error
        files, size = files + 1, size + len(found[1])
    return Written(out / "index.html", len(shown.site.results.records), files, size)


# Served -------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves until it is told to stop; `url` is its first page."""

    daemon_threads = True

    @property
    def url(self) -> str:
        """Of the first page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes its connection is no error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@contextmanager
def serving(shown: Shown, port: int) -> Iterator[Server]:
    """A server of the pages on this machine's own address, which no other machine reaches.

    Nothing can be written through it, and no file is read for a path: what a path names is looked
    up among the records that were there at the start.

    Raises `BadInput` where the port cannot be had.
    """
    handler = partial(_Handler, shown, _Jobs())
    try:
        server = Server((ADDRESS, port), handler)
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"cannot serve on port {port} ({getattr(error, 'strerror', None) or error}): give "
            "another one, or --port 0 for any that is free"
        ) from error
    try:
        yield server
    finally:
        server.server_close()


class _Jobs:
    """Work that goes on while a page waits for it; of the last ones the results are kept."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: dict[str, tuple[float, Event]] = {}
        self._done: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def get(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result, or how long it has been worked on."""
        with self._lock:
            if key not in self._done and key not in self._running:
                self._running[key] = time.monotonic(), Event()
                Thread(target=self._run, args=(key, compute), daemon=True).start()
            begun, ended = self._running.get(key, (0.0, None))
        if ended is not None:
            ended.wait(_PATIENCE)
        with self._lock:
            if key not in self._done:
                return {"working": int(time.monotonic() - begun)}
            result = self._done[key]
            if "error" in result:
                del self._done[key]
            return result

    def _run(self, key: str, compute: Callable[[], dict[str, Any]]) -> None:
        try:
            result = compute()
        except Exception as error:
            result = {"error": told(error)}
        with self._lock:
            self._done[key] = result
            if len(self._done) > _KEPT_ANSWERS:
                self._done.popitem(last=False)
            _, ended = self._running.pop(key)
        ended.set()


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD, and nothing else."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "bench", ""
    timeout: ClassVar[float] = 120.0

    def __init__(self, shown: Shown, jobs: _Jobs, *arguments: Any) -> None:
        self._shown, self._jobs = shown, jobs
        super().__init__(*arguments)

    @property
    def _port(self) -> int:
        assert isinstance(self.server, Server)
        return self.server.server_port

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are told to nobody."""

    def _answer(self) -> None:
        status, kind, content = self._found()
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), **_HEADERS}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _found(self) -> tuple[HTTPStatus, str, bytes]:
        # A page of elsewhere that has its own name point here would read all this as its own.
        if self.headers.get("Host") not in self._hosts():
            return _refused(HTTPStatus.MISDIRECTED_REQUEST, "another host")
        path = urlsplit(self.path).path.removeprefix("/") or "index.html"
        asked = _ASK.fullmatch(path)
        if asked:
            # No page of elsewhere can send this header, so none can make this machine compute.
            if self.headers.get("X-Bench") != "view":
                return _refused(HTTPStatus.FORBIDDEN, "not asked by a page of this server")
            said = self._asked(asked[1], asked[2], int(asked[3]), int(asked[4] or 0))
            if said is not None:
                return HTTPStatus.OK, JSON, json.dumps(said).encode()
        found = None if asked else self._shown.site.read(path)
        if found is None:
            return _refused(HTTPStatus.NOT_FOUND, "no such page")
        return HTTPStatus.OK, *found

    def _hosts(self) -> set[str]:
        return {f"{name}:{self._port}" for name in (ADDRESS, "localhost")}

    def _asked(self, record_id: str, what: str, place: int, draw: int) -> dict[str, Any] | None:
        site, asker = self._shown.site, self._shown.asker
        if record_id not in site.results.records:
            return None
        record, path = site.results.records[record_id]
        if place >= record.metrics.n or draw >= len(record.outcomes.clean):
            return None
        key = f"{record_id} {what} {place} {draw}"
        if what == "path":
            return self._jobs.get(key, lambda: asker.path(record, path.parent, place))
        shows = bool(site.seen(record_id).which)
        return self._jobs.get(
            key,
            lambda: asker.answers(record, path.parent, [place], draw, pictures=shows)[0],
        )


def _refused(status: HTTPStatus, why: str) -> tuple[HTTPStatus, str, bytes]:
    return status, "text/plain; charset=utf-8", f"{why}\n".encode()
