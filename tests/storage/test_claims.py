"""Claims on shared work: whose they are, and when they are taken over."""

import json
import os
import socket
import subprocess
import sys
import time

from bench.storage import claims
from bench.storage.claims import STALE_SECONDS, claimed


def claim_of(folder, host, pid):
    folder.mkdir()
    (folder / "owner.json").write_text(json.dumps({"host": host, "pid": pid}))


def test_a_claim_is_held_by_one_and_goes_with_its_block(tmp_path):
    folder = tmp_path / "claim"
    with claimed(folder) as ours, claimed(folder) as theirs:
        assert ours and not theirs and folder.exists()
        owner = json.loads((folder / "owner.json").read_text())
        assert owner == {"host": socket.gethostname(), "pid": os.getpid()}
    assert not folder.exists()
    with claimed(folder) as ours:
        assert ours


def test_another_hosts_claim_is_kept_until_it_is_stale(tmp_path):
    folder = tmp_path / "claim"
    claim_of(folder, "elsewhere", 1)
    with claimed(folder) as ours:
        assert not ours
    old = time.time() - STALE_SECONDS - 1
    os.utime(folder, (old, old))
    with claimed(folder) as ours:
        assert ours
    assert not list(tmp_path.iterdir())


def test_a_dead_process_of_this_host_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    claim_of(tmp_path / "claim", socket.gethostname(), process.pid)
    with claimed(tmp_path / "claim") as ours:
        assert ours


def test_a_long_block_keeps_giving_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    folder = tmp_path / "claim"
    with claimed(folder):
        os.utime(folder, (1, 1))
        deadline = time.monotonic() + 10
        while folder.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert folder.stat().st_mtime > 2


def test_work_that_is_gone_is_nobodys(tmp_path):
    with claimed(tmp_path / "dropped" / "claim") as ours:
        assert not ours
