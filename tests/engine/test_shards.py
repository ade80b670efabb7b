"""Shards: saved, claimed, resumed."""

import json
import os
import shutil
import time

import numpy as np
import pytest

from bench.engine import shards
from bench.engine.shards import Workspace, complete, shards_of
from bench.storage.claims import STALE_SECONDS
from bench.storage.place import Place, clear_work


@pytest.mark.parametrize(
    ("n", "batch", "unit", "random", "sizes"),
    [
        (0, 128, None, False, []),
        (64, 128, None, False, [64]),
        (64, 128, None, True, [32, 32]),
        (200, 128, None, False, [100, 100]),
        (200, 128, None, True, [50] * 4),
        (512, 128, None, True, [128] * 4),
        (520, 128, None, True, [104] * 5),
        (512, 64, None, True, [64] * 8),
        (100, 8, None, False, [50, 50]),
        (70, 128, 30, False, [30, 30, 10]),
        (70, 128, 30, True, [30, 30, 10]),
        (1024, 1024, None, True, [256] * 4),
    ],
)
def test_shards_are_alike_in_size_and_a_random_defense_has_more(n, batch, unit, random, sizes):
    found = shards_of(n, batch, unit, random)
    assert [end - start for start, end in found] == sizes
    assert [start for start, _ in found] == [sum(sizes[:i]) for i in range(len(sizes))]


def test_saved_shards_are_not_computed_again(tmp_path):
    work = Workspace(Place(tmp_path / "w"))
    work.save((0, 64), {"x": np.arange(3)})
    computed, reported = [], []

    def compute(shard):
        computed.append(shard)
        return {"x": np.arange(5)}

    wanted = [(0, 64), (64, 100)]
    found = complete(
        work, wanted, compute, lambda: False, lambda shard, arrays: reported.append(shard)
    )
    assert computed == [(64, 100)] and reported == wanted
    assert [len(found[shard]["x"]) for shard in wanted] == [3, 5]


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


def test_a_shard_that_is_cleared_away_is_not_computed_again(tmp_path):
    """Another process ends the evaluation between our claim and our look for the shard."""
    work = Workspace(Place(tmp_path / "w" / "weights"))
    with work.claim((0, 2)):
        pass
    work.stands()
    loads, load = iter([None, "cleared"]), work.load

    def cleared(shard):
        if next(loads):
            clear_work(tmp_path / "w")
        return load(shard)

    work.load = cleared
    assert shards._obtain(work, (0, 2), pytest.fail, lambda: not work.stands()) is None


def test_what_has_ended_stays_so_when_a_claim_begins_new_work_in_its_folder(tmp_path):
    work, stored = Workspace(Place(tmp_path / "w" / "weights")), []
    with work.claim((0, 2)):
        assert not work.ended(lambda: bool(stored)) and not work.ended(pytest.fail)
    stored.append("record")
    clear_work(tmp_path / "w")
    with work.claim((0, 2)):
        assert work.ended(lambda: bool(stored))
    with work.claim((2, 4)):
        assert work.ended(lambda: False)


def test_the_token_goes_before_the_shards(tmp_path, monkeypatch):
    work = Workspace(Place(tmp_path / "w" / "weights"))
    with work.claim((0, 2)):
        pass
    work.save((0, 2), {"a": np.zeros(2)})
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    clear_work(tmp_path / "w")
    assert work.load((0, 2)) is not None and work.stands() is False
    assert not (tmp_path / "w" / "weights" / "begun").exists()


def test_work_stands_until_somebody_clears_it(tmp_path):
    work = Workspace(Place(tmp_path / "w"))
    assert not work.stands() and not work.stands()
    with work.claim((0, 2)) as claim:
        assert claim and not work.stands() and work.stands()
    shutil.rmtree(tmp_path / "w")
    with work.claim((0, 2)):
        assert not work.stands() and work.stands()
