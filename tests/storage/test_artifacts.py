"""Artifacts: made once, resumed, made again where damaged."""

import json
import multiprocessing
import os
import threading
import time

import pytest

from bench.errors import BadInput
from bench.storage import artifacts
from bench.storage.artifacts import artifact, cache_root, empty_cache
from bench.storage.files import write_whole


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))


def write(text, log=None):
    def make(folder):
        if log is not None:
            log.append(sorted(path.name for path in folder.iterdir()))
        write_whole(folder / "a" / "text", text.encode())

    return make


def test_an_artifact_is_made_once_and_found_by_its_identity():
    log = []
    first = artifact("nets", {"seed": 0, "shape": (1, 2)}, write("zero", log))
    again = artifact("nets", {"shape": [1, 2], "seed": 0}, write("other", log))
    other = artifact("nets", {"seed": 1, "shape": (1, 2)}, write("one", log))
    assert first == again and other != first and log == [[], []]
    assert (first / "a" / "text").read_text() == "zero" and (
        other / "a" / "text"
    ).read_text() == "one"
    assert first.parent == cache_root() / "nets"
    assert sorted(path.name for path in first.parent.iterdir()) == sorted(
        [first.name, other.name]
    ), "nothing else is left"
    assert json.loads((first / "identity.json").read_text())["identity"] == {
        "seed": 0,
        "shape": [1, 2],
    }


def test_an_interrupted_one_goes_on_from_what_it_had():
    def interrupted(folder):
        write_whole(folder / "half", b"half")
        raise KeyboardInterrupt

    log = []
    with pytest.raises(KeyboardInterrupt):
        artifact("nets", {"seed": 0}, interrupted)
    artifact("nets", {"seed": 1}, write("another's work is not ours", log))
    folder = artifact("nets", {"seed": 0}, write("whole", log))
    assert log == [[], ["half"]]
    assert (folder / "half").read_text() == "half" and (
        folder / "a" / "text"
    ).read_text() == "whole"


@pytest.mark.parametrize("harm", ["change", "remove", "add", "truncate", "claim"])
def test_a_damaged_one_is_made_again(harm):
    folder = artifact("nets", {"seed": 0}, write("right"))
    if harm == "change":
        (folder / "a" / "text").write_text("wrong")
    elif harm == "remove":
        (folder / "a" / "text").unlink()
    elif harm == "add":
        (folder / "more").write_text("")
    elif harm == "truncate":
        (folder / "identity.json").write_text("{")
    else:
        about = json.loads((folder / "identity.json").read_text())
        (folder / "identity.json").write_text(json.dumps({**about, "identity": {"seed": 1}}))
    log = []
    assert artifact("nets", {"seed": 0}, write("right", log)) == folder
    assert log == [[]] and (folder / "a" / "text").read_text() == "right"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def make_slowly(log, barrier):
    def make(folder):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        write_whole(folder / "pid", str(os.getpid()).encode())

    barrier.wait()
    folder = artifact("nets", {"seed": 0}, make)
    assert (folder / "pid").exists()


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    both = [context.Process(target=make_slowly, args=(tmp_path / "log", barrier)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(30)
    assert [one.exitcode for one in both] == [0, 0]
    (maker,) = (tmp_path / "log").read_text().split()
    folder = artifact("nets", {"seed": 0}, write("never"))
    assert (folder / "pid").read_text() == maker


def test_who_waits_for_one_that_fails_makes_it(capsys):
    claimed, failing = threading.Event(), threading.Event()

    def fail(folder):
        claimed.set()
        failing.wait(30)
        raise RuntimeError("no")

    def first():
        with pytest.raises(RuntimeError):
            artifact("nets", {"seed": 0}, fail)

    thread = threading.Thread(target=first)
    thread.start()
    claimed.wait(30)
    threading.Timer(0.3, failing.set).start()
    folder = artifact("nets", {"seed": 0}, write("second"))
    thread.join()
    assert (folder / "a" / "text").read_text() == "second"
    assert capsys.readouterr().err.count("waiting for another process") == 1


def test_one_that_was_finished_just_before_the_claim_is_not_made_again(monkeypatch):
    right, log = artifacts.claimed, []

    def late(folder):
        monkeypatch.setattr(artifacts, "claimed", right)
        artifact("nets", {"seed": 0}, write("first", log))
        return right(folder)

    monkeypatch.setattr(artifacts, "claimed", late)
    folder = artifact("nets", {"seed": 0}, write("second", log))
    assert (folder / "a" / "text").read_text() == "first" and log == [[]]


def test_a_dead_process_holds_nobody_up(tmp_path):
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=lambda: artifact("nets", {"seed": 0}, lambda folder: os._exit(3))
    )
    process.start()
    process.join(30)
    assert process.exitcode == 3
    artifact("nets", {"seed": 0}, write("alive"))


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(cache_root()) == "/x/adversarial-bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(cache_root()) == "/home/me/.cache/adversarial-bench"


def test_a_cache_that_cannot_be_written_is_bad_input(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(BadInput, match="set BENCH_CACHE"):
        artifact("nets", {"seed": 0}, write("x"))


def test_an_empty_cache_goes_as_it_came(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    with empty_cache():
        inside = cache_root()
        assert inside != tmp_path and not list(inside.iterdir())
    assert cache_root() == tmp_path and not inside.exists()
    monkeypatch.delenv("BENCH_CACHE")
    with pytest.raises(KeyError), empty_cache():
        raise KeyError
    assert cache_root().name == "adversarial-bench"
