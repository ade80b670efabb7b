"""Whole writes, and the hash of an identity."""

import os
import shutil
from pathlib import Path

import pytest

from bench.commands.status import status
from bench.results.store import files_below
from bench.storage import files
from bench.storage.files import found, make_folder, write_whole
from bench.storage.identity import identity_hash
from bench.storage.place import clear_work


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


def test_a_folder_whose_parent_is_dropped_meanwhile_is_made(tmp_path, monkeypatch):
    """Whoever ends an evaluation drops its folder while another process claims something in it."""
    made, parent, tries = os.mkdir, tmp_path / "evaluation", []

    def raced(path, *arguments, **options):
        tries.append(Path(path))
        if tries.count(parent / "probes") == 2 and parent.is_dir():
            parent.rmdir()
        return made(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", raced)
    make_folder(parent / "probes", parents=True)
    assert (parent / "probes").is_dir() and tries.count(parent) >= 2


def test_what_can_never_be_made_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        make_folder(tmp_path / "missing" / "claim")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "nowhere" / "claim", parents=True)


@pytest.mark.parametrize("step", ["open", "replace"])
def test_a_file_is_written_also_where_its_folder_is_dropped_meanwhile(tmp_path, monkeypatch, step):
    folder, drops = tmp_path / "work", []

    def dropping(call):
        def dropped(*arguments, **options):
            if not drops:
                drops.append(folder)
                shutil.rmtree(folder)
            return call(*arguments, **options)

        return dropped

    owner, name = (Path, "open") if step == "open" else (files.os, "replace")
    monkeypatch.setattr(owner, name, dropping(getattr(owner, name)))
    write_whole(folder / "file", b"new")
    assert (folder / "file").read_bytes() == b"new" and drops
    assert list(folder.iterdir()) == [folder / "file"]


@pytest.mark.parametrize(
    "look",
    [
        lambda folder: list(found(folder / ".work", "*/**/claim-*")),
        lambda folder: clear_work(folder / ".work"),
        files_below,
        status,
    ],
)
def test_who_looks_while_another_process_clears_away_sees_what_is_left(tmp_path, monkeypatch, look):
    listed = os.scandir
    for name in ("gone", "left"):
        (tmp_path / ".work" / name / "weights" / "claim-0000000-0000001").mkdir(parents=True)

    def raced(path):
        if "gone" in str(path):
            raise FileNotFoundError(path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", raced)
    look(tmp_path)
    assert [path.parts[-3] for path in found(tmp_path, ".work/*/*/claim-*")] in (["left"], [])
