"""Published files: verified when found, downloaded with resume, offline with one clear line."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench.storage.data_root import rooted
from bench.storage.download import fetch
from tests.toys import message

CONTENT = bytes(range(256)) * 4096
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server(ThreadingHTTPServer):
    """Serves `content` and keeps each request's Range header; `broken` ends the first answer half
    way.
    """

    content = CONTENT
    broken = False
    ranges_known = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        given = self.headers.get("Range")
        self.server.asked.append(given)
        start = (
            int(given.removeprefix("bytes=").removesuffix("-"))
            if given and self.server.ranges_known
            else 0
        )
        body = self.server.content[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half, self.server.broken = self.server.broken, False
        self.wfile.write(body[: len(body) // 2] if half else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("BENCH_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.mark.parametrize("checksum", [SHA256, MD5, f"sha1:{hashlib.sha1(CONTENT).hexdigest()}"])
def test_a_file_that_is_there_is_verified_and_not_asked_for(tmp_path, server, checksum):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert fetch("file.bin", [server.url], checksum, tmp_path) == tmp_path / "file.bin"
    assert server.asked == []


def test_a_wrong_file_is_refused_and_kept(tmp_path, server):
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT[:-1])
    text = message(lambda: fetch("file.bin", [server.url], SHA256, tmp_path))
    assert (
        str(path) in text
        and SHA256 in text
        and hashlib.sha256(CONTENT[:-1]).hexdigest() in text
        and "remove it" in text
    )
    assert path.read_bytes() == CONTENT[:-1]
    assert server.asked == []
    path.write_bytes(CONTENT)
    assert fetch("file.bin", [], SHA256, tmp_path) == path


@pytest.mark.parametrize(
    "checksum",
    [
        "",
        "sha256:",
        SHA256[:-1],
        MD5.replace("md5", "sha256"),
        "crc:00",
        SHA256.upper(),
        SHA256[7:],
    ],
)
def test_a_prefix_or_an_unknown_kind_is_no_checksum(tmp_path, checksum):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert "is none" in message(lambda: fetch("file.bin", [], checksum, tmp_path))


def test_download_into_the_data_root(tmp_path, server):
    with rooted(tmp_path):
        assert fetch("sub/file.bin", [server.url], MD5) == tmp_path / "sub" / "file.bin"
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["file.bin"]
    assert (tmp_path / "sub" / "file.bin").read_bytes() == CONTENT


def test_a_broken_download_is_resumed(tmp_path, server):
    server.broken = True
    text = message(lambda: fetch("file.bin", [server.url], SHA256, tmp_path))
    assert "broke after" in text and server.url in text
    assert not (tmp_path / "file.bin").exists()
    held = (tmp_path / "file.bin.part").stat().st_size
    assert held == len(CONTENT) // 2
    assert fetch("file.bin", [server.url], SHA256, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={held}-"]


@pytest.mark.parametrize(
    "old", [b"another beginning", b"x" * len(CONTENT), CONTENT + b"x", CONTENT]
)
@pytest.mark.parametrize("ranges_known", [True, False])
def test_an_old_beginning_does_no_harm(tmp_path, server, old, ranges_known):
    server.ranges_known = ranges_known
    (tmp_path / "file.bin.part").write_bytes(old)
    assert fetch("file.bin", [server.url], SHA256, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == (2 if ranges_known and old != CONTENT else 1)


def test_the_next_url_is_tried(tmp_path, server):
    bad = server.url.replace("127.0.0.1", "127.0.0.1:1/nothing/", 1)
    assert fetch("file.bin", [bad, server.url], SHA256, tmp_path).read_bytes() == CONTENT


def test_a_wrong_download_is_refused_and_dropped(tmp_path, server):
    server.content = b"<html>please log in</html>"
    text = message(lambda: fetch("file.bin", [server.url], SHA256, tmp_path))
    assert SHA256 in text and f"sends sha256:{hashlib.sha256(server.content).hexdigest()}" in text
    assert not (tmp_path / "file.bin").exists()
    assert list(tmp_path.iterdir()) == []


def test_processes_that_want_the_same_file_share_one_download(tmp_path, server):
    with ThreadPoolExecutor(8) as pool:
        paths = list(
            pool.map(lambda _: fetch("file.bin", [server.url], SHA256, tmp_path), range(8))
        )
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server.asked == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("name", ["BENCH_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_which_file_from_where_to_where(tmp_path, server, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    text = message(lambda: fetch("a/file.bin", [server.url], SHA256, tmp_path))
    for word in (name, "file.bin", server.url, str(tmp_path / "a" / "file.bin"), SHA256):
        assert word in text
    assert server.asked == []
    assert not (tmp_path / "a").exists()


def test_no_network_and_no_permission_are_one_line(tmp_path, server):
    server.shutdown()
    server.server_close()
    assert "Connection refused" in message(
        lambda: fetch("file.bin", [server.url], SHA256, tmp_path)
    )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken").write_bytes(b"")
    assert "put it at" in message(lambda: fetch("taken/file.bin", [server.url], SHA256, tmp_path))
    assert "nobody offers" in message(lambda: fetch("file.bin", [], SHA256, tmp_path))
    assert "cannot read" in message(lambda: fetch(".", [], SHA256, tmp_path))
