"""Names of records by their id, without reading the folder for each."""

import os

from bench.results import store
from bench.results.store import Listing


def test_a_folder_is_read_again_when_it_changed_and_not_before(tmp_path, monkeypatch):
    clock, reads, plain = [100.0], [], os.listdir
    monkeypatch.setattr(store.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(store.os, "listdir", lambda folder: reads.append(folder) or plain(folder))
    listing = Listing(tmp_path / "none")
    assert listing.of("a") == []
    listing = Listing(tmp_path)
    (tmp_path / "x--y--a.json").touch()
    (tmp_path / "x--y--a.error.json").touch()
    assert listing.of("a") == ["x--y--a.json"] and listing.of("y--a") == []
    # Another file within the same tick of the clock.
    before = os.stat(tmp_path)
    (tmp_path / "x--b.json").touch()
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert listing.of("b") == ["x--b.json"]
    clock[0] += 10
    listing.of("b")
    seen = len(reads)
    assert listing.of("b") == ["x--b.json"] and listing.of("c") == [] and len(reads) == seen
    (tmp_path / "x--c.json").touch()
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert listing.of("c") == ["x--c.json"]
