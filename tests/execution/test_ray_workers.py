"""A Ray cluster of two nodes on this machine; by hand, since it takes half a minute to start."""

import random
import threading
import time

import pytest

from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.errors import BadInput
from bench.execution.executor import Work, read_executor
from bench.results.store import Store
from tests.execution.test_local import alone, records

pytestmark = pytest.mark.slow
REQUEST = Request(defense=("bit-depth", "temperature"), attack="pgd:steps=20", n=512)


@pytest.fixture
def cluster(tmp_path_factory, monkeypatch):
    """A head without CPUs, and two nodes of one CPU each."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    # Ray writes a token into the home folder, and counts usage unless told otherwise.
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    state = random.getstate()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    random.setstate(state)
    yield made, nodes
    state = random.getstate()
    ray.shutdown()
    made.shutdown()
    random.setstate(state)


def test_a_node_is_killed_in_the_middle(tmp_path, cluster):
    """Nothing is lost and nothing doubled: the records are those of one process."""
    made, nodes = cluster
    evaluations, store, seen = plan(REQUEST), Store(tmp_path / "ray"), []
    threading.Thread(target=killed_once_it_works, args=(made, nodes[0], seen)).start()

    def progress(evaluation, images, total, right):
        seen.append((evaluation.id, images))

    executor = read_executor(f"ray:address={made.address}", 2)
    execution = Execution(batch_size=64, progress=progress)
    results = list(executor.run(Work(evaluations, [REQUEST], store, execution), print))
    assert all(one.record and one.computed for one in results) and len(results) == 3
    assert records(store.folder) == alone(tmp_path / "alone", evaluations)
    assert len(list(store.folder.glob("*.json"))) == 3
    told = [sum(n for name, n in seen if name == one.id) for one in evaluations]
    assert told == [512] * 3 and not list((store.folder / ".work").iterdir())


def killed_once_it_works(made, node, seen):
    """Kill a node with all that runs on it once three shards have been handed in."""
    while sum(images > 0 for _, images in seen) < 3:
        time.sleep(0.05)
    made.remove_node(node, allow_graceful=False)


def test_more_than_the_cluster_has_is_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.delenv("BENCH_WORKERS")
    made, _ = cluster
    executor = read_executor(f"ray:address={made.address},cpus=3", None)
    execution = executor.execution("auto", 64, None, "off")
    work = Work(plan(REQUEST), [REQUEST], Store(tmp_path), execution)
    with pytest.raises(BadInput, match="too few for a worker of 3 and 0: ask for less"):
        list(executor.run(work, print))


def test_weights_that_nodes_need_not_have_are_refused(tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    work = Work([], [REQUEST], Store(tmp_path), Execution(weights=tmp_path))
    with pytest.raises(BadInput, match="--executor local"):
        list(read_executor("ray", 2).run(work, print))
