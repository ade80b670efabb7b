"""Shards: saved, claimed, resumed."""

import json
import os
import shutil
import time

import numpy as np

from bench.engine.shards import Workspace, complete
from bench.storage.claims import STALE_SECONDS
from bench.storage.place import Place


def test_saved_shards_are_not_computed_again(tmp_path):
    work = Workspace(Place(tmp_path / "w"))
    work.save((0, 64), {"x": np.arange(3)})
    computed, reported = [], []

    def compute(shard):
        computed.append(shard)
        return {"x": np.arange(5)}

    shards = [(0, 64), (64, 100)]
    found = complete(
        work, shards, compute, lambda: False, lambda shard, arrays: reported.append(shard)
    )
    assert computed == [(64, 100)] and reported == shards
    assert [len(found[shard]["x"]) for shard in shards] == [3, 5]


def test_a_stale_claim_is_taken_over(tmp_path):
    work = Workspace(Place(tmp_path / "w"))
    claim = tmp_path / "w" / "claim-0000000-0000064"
    claim.mkdir(parents=True)
    (claim / "owner.json").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with work.claim((0, 64)) as ours:
        assert not ours, "a fresh claim of another host is kept"
    old = time.time() - 2 * STALE_SECONDS
    os.utime(claim, (old, old))
    with work.claim((0, 64)) as ours, work.claim((0, 64)) as twice:
        assert ours and not twice
    assert not claim.exists()


def test_work_stands_until_somebody_clears_it(tmp_path):
    work = Workspace(Place(tmp_path / "w"))
    assert not work.stands() and not work.stands()
    with work.claim((0, 2)) as claim:
        assert claim and not work.stands() and work.stands()
    shutil.rmtree(tmp_path / "w")
    with work.claim((0, 2)):
        assert not work.stands() and work.stands()
