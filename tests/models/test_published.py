"""Published weights whose download has no checksum of its own."""

import hashlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from bench.models.published import trusted, unzipped
from tests.models.helpers import sha, zipped
from tests.toys import message

pytestmark = pytest.mark.usefixtures("root")


def test_a_zip_is_downloaded_unpacked_and_verified(tmp_path, root):
    url = zipped(tmp_path / "web", "a.pth", b"weights").as_uri()
    checksum = sha("sha1", b"weights")
    assert unzipped("x/a.pth", url, checksum).read_bytes() == b"weights"
    assert [path.name for path in (root / "x").iterdir()] == ["a.pth"]
    assert unzipped("x/a.pth", "file:///nowhere.zip", checksum) == root / "x" / "a.pth"


def test_a_zip_or_a_file_put_there_is_taken(root):
    checksum = sha("sha1", b"weights")
    zipped(root / "x", "a.pth", b"weights")
    assert unzipped("x/a.pth", "file:///nowhere.zip", checksum).read_bytes() == b"weights"
    (root / "x" / "b.pth").write_bytes(b"weights")
    assert unzipped("x/b.pth", "file:///nowhere.zip", checksum) == root / "x" / "b.pth"


def test_a_damaged_zip_is_refused_in_one_line(root):
    archive = zipped(root / "x", "a.pth", bytes(range(256)) * 400)
    content = bytearray(archive.read_bytes())
    content[45:51] = bytes(6)
    archive.write_bytes(content)
    assert "get it again" in message(lambda: unzipped("x/a.pth", "", sha("sha1", b"weights")))


def test_a_download_that_breaks_off_is_not_trusted(root):
    class Broken(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.pt"
        assert "4 of 1000 bytes" in message(lambda: trusted("x/a.pt", url, "the page"))
    assert not list((root / "x").iterdir())


def test_a_zip_with_other_content_is_refused(root):
    zipped(root / "x", "a.pth", b"other")
    for _ in range(2):
        assert sha("sha1", b"other") in message(
            lambda: unzipped("x/a.pth", "", sha("sha1", b"weights"))
        )
    zipped(root / "x", "c.pth", b"other").rename(root / "x" / "b.pth.zip")
    assert "no zip that holds b.pth" in message(
        lambda: unzipped("x/b.pth", "", sha("sha1", b"weights"))
    )
    (root / "x" / "d.pth.zip").write_bytes(b"no zip")
    assert "no zip that holds d.pth" in message(
        lambda: unzipped("x/d.pth", "", sha("sha1", b"weights"))
    )
    assert not (root / "x" / "d.pth").exists()


def test_what_is_missing_offline_is_said(root, monkeypatch):
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    text = message(lambda: unzipped("x/a.pth", "https://host/a.pth.zip", sha("sha1", b"weights")))
    for word in (
        "BENCH_OFFLINE",
        str(root / "x" / "a.pth"),
        "https://host/a.pth.zip",
        sha("sha1", b"weights"),
    ):
        assert word in text
    text = message(lambda: trusted("x/a.pt", "https://host/raw", "https://host/page"))
    for word in ("BENCH_OFFLINE", str(root / "x" / "a.pt"), "https://host/page"):
        assert word in text


def test_a_host_that_does_not_answer_is_said(tmp_path):
    text = message(
        lambda: unzipped("x/a.pth", (tmp_path / "none.zip").as_uri(), sha("sha1", b"weights"))
    )
    assert "cannot be downloaded" in text and "none.zip" in text


def test_a_file_is_held_to_what_it_was_first(tmp_path, root):
    source = tmp_path / "a.pt"
    source.write_bytes(b"weights")
    path = trusted("x/a.pt", source.as_uri(), "page")
    assert path.read_bytes() == b"weights"
    note = root / "x" / "a.pt.sha256"
    assert note.read_text().strip() == hashlib.sha256(b"weights").hexdigest()
    assert trusted("x/a.pt", "file:///nowhere", "page") == path
    path.write_bytes(b"others")
    text = message(lambda: trusted("x/a.pt", "file:///nowhere", "page"))
    assert (
        hashlib.sha256(b"weights").hexdigest() in text
        and hashlib.sha256(b"others").hexdigest() in text
    )
    note.unlink()
    assert trusted("x/a.pt", "file:///nowhere", "page") == path


def test_a_web_page_is_no_weights(tmp_path, root):
    source = tmp_path / "a.pt"
    source.write_bytes(b"\n<!DOCTYPE html><html>quota exceeded")
    assert "a web page came instead" in message(lambda: trusted("x/a.pt", source.as_uri(), "page"))
    assert list((root / "x").iterdir()) == []
