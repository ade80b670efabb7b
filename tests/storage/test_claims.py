"""Claims on shared work: whose they are, and when they are taken over."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.storage import claims
from bench.storage.claims import STALE_SECONDS, claimed
from bench.storage.files import CannotWrite
from tests.helpers import ROOT


def age(folder, seconds=STALE_SECONDS + 1):
    """Let the heartbeat stand still for a while."""
    for path in (*folder.iterdir(), folder):
        old = path.stat().st_mtime - seconds
        os.utime(path, (old, old))


def foreign(folder, token="f" * 32, kernel="of another host"):
    """A claim of a process that nobody can ask."""
    folder.mkdir()
    (folder / "owner.json").write_text(json.dumps({"token": token, "kernel": kernel, "device": 0}))


def test_a_claim_is_held_by_one_and_goes_with_its_block(tmp_path):
    folder = tmp_path / "claim"
    with claimed(folder) as ours, claimed(folder) as theirs:
        assert ours and ours.held() and not theirs
        owner = json.loads((folder / "owner.json").read_text())
        assert owner["token"] == ours.token and len(ours.token) == 32
    assert not folder.exists()
    with claimed(folder) as ours:
        assert ours


def test_another_hosts_claim_is_kept_until_its_heartbeat_stands_still(tmp_path):
    folder = tmp_path / "claim"
    foreign(folder)
    with claimed(folder) as ours:
        assert not ours
    age(folder)
    with claimed(folder) as ours:
        assert ours and ours.number == 2
    assert not list(tmp_path.iterdir())


def test_the_clocks_of_hosts_do_not_matter(tmp_path, monkeypatch):
    folder = tmp_path / "claim"
    foreign(folder)
    for shift in (90, -90, 10**6):
        monkeypatch.setattr(time, "time", lambda shift=shift: 1_800_000_000 + shift)
        with claimed(folder) as ours:
            assert not ours


def test_a_dead_process_under_this_kernel_holds_nothing(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom bench.storage.claims import claimed\n"
        "with claimed(Path(sys.argv[1])) as ours:\n    assert ours\n    os._exit(7)"
    )
    folder = tmp_path / "claim"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False, env=environment)
    assert done.returncode == 7 and folder.exists()
    with claimed(folder) as ours:
        assert ours
    assert not folder.exists()


def test_a_live_process_is_not_taken_for_dead_by_its_number(tmp_path):
    """Containers number their processes alike: the claim's number may be that of nobody here."""
    folder = tmp_path / "claim"
    with claimed(folder) as ours:
        owner = folder / "owner.json"
        about = json.loads(owner.read_text())
        with owner.open("r+") as file:
            file.write(json.dumps({**about, "pid": 4_000_000, "host": about["host"]}))
        with claimed(folder) as theirs:
            assert not theirs
        assert ours.held()


def test_the_owner_notices_that_it_lost_its_claim(tmp_path):
    folder = tmp_path / "claim"
    with claimed(folder) as first:
        age(folder)
        with claimed(folder) as second:
            assert second and second.held() and not first.held()
            with claimed(folder) as third:
                assert not third
        assert not first.held()
    assert not folder.exists()


def test_each_owner_has_one_successor(tmp_path):
    folder = tmp_path / "claim"
    foreign(folder)
    age(folder)
    barrier, held = threading.Barrier(8), []

    def take():
        barrier.wait()
        with claimed(folder) as ours:
            held.append(bool(ours))
            time.sleep(0.2)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held.count(True) == 1


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '"x"',
        "",
        "\x00\xff",
        '{"token": []}',
        '{"pid": "x"}',
        f'{{"pid": {10**30}, "host": "h"}}',
        "[" * 100_000,
        '{"kernel": {}, "token": 1}',
    ],
)
def test_a_claim_that_nobody_can_read_is_kept_until_it_is_stale(tmp_path, content):
    folder = tmp_path / "claim"
    folder.mkdir()
    (folder / "owner.json").write_bytes(content.encode("latin-1"))
    with claimed(folder) as ours:
        assert not ours
    age(folder)
    with claimed(folder) as ours:
        assert ours
    assert not folder.exists()


def test_a_long_block_keeps_giving_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    owner = tmp_path / "claim" / "owner.json"
    with claimed(tmp_path / "claim"):
        os.utime(owner, (1, 1))
        deadline = time.monotonic() + 10
        while owner.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert owner.stat().st_mtime > 2


def test_work_that_is_gone_is_nobodys(tmp_path):
    with claimed(tmp_path / "dropped" / "claim") as ours:
        assert not ours


def test_a_full_disk_is_told_and_leaves_no_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(claims.json, "dumps", lambda _: Full())
    with pytest.raises(CannotWrite, match="free some space"), claimed(tmp_path / "claim"):
        pass
    assert not list(tmp_path.iterdir())


class Full:
    def encode(self):
        raise OSError(28, "No space left on device")


SHARE = """
import os, sys, time
import numpy as np
from pathlib import Path
from bench.engine.shards import Workspace, complete
from bench.storage.place import Place
folder, log, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def compute(shard):
    with log.open("a") as file:
        file.write(f"{shard[0]} {name} {os.getpid()}\\n")
    time.sleep(0.005)
    return {"x": np.arange(*shard)}

shards = [(start, start + 1) for start in range(200)]
done = complete(Workspace(Place(folder)), shards, compute, lambda: False, lambda *_: None)
assert sorted(done) == shards and all(done[one]["x"][0] == one[0] for one in shards)
"""


def test_two_pid_namespaces_of_one_host_share_shards(tmp_path):
    alone = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        alone = []
    log, environment = tmp_path / "log", {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*alone, sys.executable, "-c", SHARE, str(tmp_path / "work"), str(log)]
    both = [subprocess.Popen([*command, name], env=environment) for name in ("a", "b")]
    assert [one.wait(240) for one in both] == [0, 0]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(shard) for shard, *_ in lines) == list(range(200)), "each once"
    assert {name for _, name, _ in lines} == {"a", "b"}
    if alone:
        assert len({pid for *_, pid in lines}) == 1, "they had one number"
    assert not list(Path(tmp_path / "work").glob("claim-*"))
