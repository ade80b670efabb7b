"""Damaged shards are computed anew, whatever is wrong with them."""

import io

import numpy as np
import pytest

from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import run_evaluation
from bench.engine.shards import Workspace
from bench.results.store import Store
from tests.helpers import toy_request

SHARD = (0, 38)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A finished evaluation, and the bytes of its first shard under the name they have on disk."""
    folder = tmp_path_factory.mktemp("whole")
    evaluation, kept = plan(toy_request())[-1], {}
    save = Workspace.save

    def keep(work, shard, arrays):
        save(work, shard, arrays)
        kept[shard] = work.place.folder.name, dict(arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, "save", keep)
        record = run_evaluation(evaluation, Store(folder), Execution(batch_size=256))
    return evaluation, record, kept


def written(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def changed(name, change):
    return lambda arrays: written({**arrays, name: change(arrays[name].copy())})


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


HARM = {
    "empty": lambda arrays: b"",
    "truncated": lambda arrays: written(arrays)[:1000],
    "garbled": lambda arrays: bytes(reversed(written(arrays))),
    "text": lambda arrays: b"no archive",
    "pickled": lambda arrays: written({**arrays, "findings": np.array([{}], dtype=object)}),
    "missing": lambda arrays: written({k: v for k, v in arrays.items() if k != "adversarial"}),
    "nan": changed("points", put((0, 0), np.nan)),
    "out of the box": changed("points", put((0, 0), 1.5)),
    "out of the ball": changed("points", lambda points: 1 - points),
    "other type": changed("points", lambda points: points.astype(np.float64)),
    "other shape": changed("points", lambda points: points[:-1]),
    "label K": changed("adversarial", put((0, 0), 3)),
    "label -2": changed("clean", put((0, 0), -2)),
    "fewer draws": changed("clean", lambda answers: answers[:, :-1]),
    "no draws": changed("replayed", lambda answers: answers[:, :0]),
    "stage": changed("stages", put(0, 5)),
    "negative": changed("forwards", put(0, -1)),
    "float labels": changed("clean", lambda answers: answers.astype(float)),
    "endless": changed("seconds", put(0, np.inf)),
    "slopes": changed("slopes/lost", put(0, -1)),
    "no slopes": lambda arrays: written({k: v for k, v in arrays.items() if k != "slopes/zero"}),
    "cause": changed("check/causes", put(0, 9)),
    "gap": changed("check/gaps", put(0, np.nan)),
    "gaps": changed("check/gaps", lambda gaps: gaps[:-1]),
    "moved names": changed("check/moved", lambda _: np.zeros(2)),
    "base": changed("check/base", put((0, 0), 3)),
    "base draws": changed("check/base", lambda answers: answers[:, :1]),
    "copied": changed("check/copied", lambda one: one[:0]),
    "check passes": changed("check/forwards", put(0, -1)),
    "unchecked": lambda arrays: written(
        {k: v for k, v in arrays.items() if not k.startswith("check/")}
    ),
    "finding": changed("findings", lambda _: np.array(["{}"])),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_shard_is_computed_anew(tmp_path, capsys, shards, harm):
    evaluation, record, kept = shards
    name, arrays = kept[SHARD]
    store = Store(tmp_path)
    folder = store.work(evaluation.id) / name
    folder.mkdir(parents=True)
    (folder / "shard-0000000-0000038.npz").write_bytes(HARM[harm](arrays))
    again = run_evaluation(evaluation, store, Execution(batch_size=256))
    assert (again.outcomes, again.metrics) == (record.outcomes, record.metrics)
    assert again.points == record.points
    assert "is damaged" in capsys.readouterr().err


def test_a_whole_shard_is_used(tmp_path, capsys, shards, monkeypatch):
    evaluation, _, kept = shards
    store = Store(tmp_path)
    for shard, (name, arrays) in kept.items():
        folder = store.work(evaluation.id) / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"shard-{shard[0]:07d}-{shard[1]:07d}.npz").write_bytes(written(arrays))
    monkeypatch.setattr("bench.engine.run.ShardComputer.__call__", None)
    assert run_evaluation(evaluation, store, Execution(batch_size=256)).id == evaluation.id
    assert "damaged" not in capsys.readouterr().err
