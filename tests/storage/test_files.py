"""Whole writes, and the hash of an identity."""

from pathlib import Path

import pytest

from bench.storage import files
from bench.storage.files import make_folder, write_whole
from bench.storage.identity import identity_hash


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a" / "file"
    write_whole(path, b"old")

    def interrupted(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_hash_of_an_identity_is_blind_to_order_and_nothing_else():
    assert identity_hash({"a": 1, "b": [1, 2]}) == identity_hash({"b": [1, 2], "a": 1})
    assert identity_hash({"a": 1}) != identity_hash({"a": 2}) != identity_hash({"a": "2"})
    assert len(identity_hash({})) == 16
    with pytest.raises(ValueError, match="Out of range"):
        identity_hash({"a": float("nan")})


def test_a_folder_that_another_process_drops_meanwhile_is_made(tmp_path, monkeypatch):
    made, looks = Path.mkdir, []

    def raced(self, *arguments, **options):
        looks.append(self)
        if len(looks) == 1:
            raise FileExistsError(self)
        return made(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", raced)
    make_folder(tmp_path / "claim")
    assert (tmp_path / "claim").is_dir() and len(looks) == 2
    make_folder(tmp_path / "claim")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")
