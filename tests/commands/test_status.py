"""`bench status`: what runs where, what is done, what failed, and the rest of the time."""

import json
import os
import socket
import time

import pytest

from bench.commands.status import status
from bench.errors import BadInput
from bench.results.agenda import Item, agendas, announced
from bench.storage.claims import STALE_SECONDS, claimed
from tests.helpers import call, run_toys


def test_a_folder_at_rest(tmp_path, capsys):
    run_toys(tmp_path, attacks=("null",), dataset="toy:n=64")
    seen = status(tmp_path)
    assert (seen.records, seen.failures, seen.planned, seen.running) == (2, [], 0, [])
    code, out, _ = call(capsys, "status", str(tmp_path))
    assert code == 0 and out.splitlines()[1:] == ["nothing runs here"]
    with pytest.raises(BadInput, match="no such folder"):
        status(tmp_path / "nowhere")


def test_what_runs_is_told_with_its_host_and_the_rest_of_the_time(tmp_path, capsys):
    """Of 300 passes 100 + 50 are done after 60 seconds."""
    (record, *_) = run_toys(tmp_path, attacks=("null",), dataset="toy:n=64")
    items = {
        record.id: Item(title="one", images=64, passes=100.0),
        "b" * 16: Item(title="two", images=128, passes=100.0),
        "c" * 16: Item(title="three", images=128, passes=100.0),
    }
    work = tmp_path / ".work" / ("b" * 16) / "weights"
    work.mkdir(parents=True)
    (work / "shard-0000000-0000064.npz").touch()
    with announced(tmp_path, items, items):
        (path,) = (tmp_path / ".work").glob("agenda-*.json")
        assert status(tmp_path).left is None, "nobody is at work"
        began = time.time() - 60
        os.utime(path, (began, began))
        with claimed(work / "claim-0000064-0000128"):
            seen = status(tmp_path)
            _, out, _ = call(capsys, "status", str(tmp_path))
            _, printed, _ = call(capsys, "status", str(tmp_path), "--json")
    assert (seen.planned, seen.done, seen.failed) == (3, 1, 0)
    assert seen.left == pytest.approx(60, abs=3)
    (one,) = seen.running
    assert (one.title, one.done, one.images) == ("two", 64, 128)
    assert one.owner.alive and one.owner.pid == os.getpid()
    assert f"images 64 to 128 at {socket.gethostname()}, process {os.getpid()}, for" in out
    assert "1 of 3 evaluations, 0 failed, about" in out
    assert json.loads(printed)["running"][0]["owner"]["pid"] == os.getpid()
    assert agendas(tmp_path) == [], "it goes with the block"


def test_a_claim_of_a_process_that_is_gone_is_told(tmp_path):
    claim = tmp_path / ".work" / ("b" * 16) / "weights" / "claim-0000000-0000064"
    claim.mkdir(parents=True)
    owner = claim / "owner.json"
    owner.write_text(json.dumps({"token": "t", "host": "elsewhere", "pid": 7}))
    assert status(tmp_path).running[0].owner.alive
    old = time.time() - 2 * STALE_SECONDS
    os.utime(owner, (old, old))
    assert not status(tmp_path).running[0].owner.alive
    assert "at elsewhere, process 7" in str(status(tmp_path))
    assert "gone, no sign for 2.0 min" in str(status(tmp_path))
