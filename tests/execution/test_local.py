"""Several processes on one job: the records are those of one."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import bench
from bench.engine import run
from bench.engine.compute import ShardComputer
from bench.engine.execution import Execution
from bench.engine.plan import plan, plan_all
from bench.engine.request import Request
from bench.engine.run import run_evaluations, shards_for
from bench.errors import BadInput
from bench.execution import local
from bench.execution.copies import LEFT, Copies
from bench.execution.job import Job
from bench.execution.local import Team, read_team, run_in_processes, several
from bench.results.store import Store, read_folder
from tests.helpers import refused, toy_request
from tests.toy_model import make_model

DIGITS = Request(defense=("bit-depth",), attack="bpda:steps=2", n=128)
CPU = torch.device("cpu")


def records(folder):
    """What the records of a folder say, apart from times."""
    found = {}
    for record in read_folder(folder):
        content = record.model_dump(mode="json", exclude={"finished": True})
        content["cost"].pop("seconds")
        # Somebody may commit between two runs.
        content["environment"].pop("commit", None)
        found[record.id] = content
    return found


def alone(folder, evaluations):
    list(run_evaluations(evaluations, Store(folder), Execution(batch_size=64)))
    return records(folder)


def in_child(work):
    """Run it in a child process, which ends with 0 where nothing was raised."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os._exit(code)


def test_several_that_share_make_what_one_makes_and_nothing_twice(tmp_path, monkeypatch):
    request = toy_request(defenses=("toy-jitter", "toy-trainer"), attacks=("pgd:steps=3", "null"))
    evaluations = plan(request)
    expected = alone(tmp_path / "alone", evaluations)
    log, compute = tmp_path / "log", ShardComputer.__call__

    def logged(self, shard):
        with log.open("a") as file:
            file.write(f"{self.evaluation.id} {shard}\n")
        return compute(self, shard)

    def take_part():
        store, execution = Store(tmp_path / "shared"), Execution(batch_size=64)
        results = list(run_evaluations(evaluations, store, execution, shared=True))
        assert sorted(one.evaluation.id for one in results) == sorted(e.id for e in evaluations)
        assert all(one.record for one in results)

    monkeypatch.setattr(ShardComputer, "__call__", logged)
    children = [in_child(take_part) for _ in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children] == [0, 0, 0]
    assert records(tmp_path / "shared") == expected
    computed = log.read_text().splitlines()
    shards = sum(len(shards_for(one, Execution(batch_size=64))) for one in evaluations)
    assert len(computed) == len(set(computed)) == shards


def test_a_row_waits_for_the_points_of_its_base(tmp_path, monkeypatch):
    """The base is in another process's hands: its row must not run without the base's points."""
    base, row = plan(toy_request(defenses=("toy-jitter",), attacks=("null",)))
    store, began = Store(tmp_path), []
    assert store.begin(base.id)
    monkeypatch.setattr(run, "WAIT_SECONDS", 0.0)
    queue = run._Queue([base, row], store, Execution(), shared=True)
    for evaluation in (base, row):
        with pytest.raises(run.Busy):
            began += queue.run(evaluation, join=False)
    assert not began and not list(tmp_path.glob("*.json"))
    assert [one.record is not None for one in queue.run(base, join=True)] == [True]
    assert [one.record is not None for one in queue.run(row, join=False)] == [True]


def test_what_others_finish_is_told_with_all_its_images(tmp_path):
    evaluations = plan(toy_request(defenses=("undefended",), attacks=("null",)))
    seen = []

    def progress(evaluation, images, total, right):
        seen.append(images)

    queue = run._Queue(evaluations, Store(tmp_path), Execution(progress=progress), shared=True)
    alone(tmp_path, evaluations)
    (result,) = queue.run(evaluations[0], join=False)
    assert result.computed and seen == [150]
    (result,) = run_evaluations(evaluations, Store(tmp_path), Execution(), shared=True)
    assert not result.computed, "it was stored before this run"


def test_a_crash_ends_for_each_of_them_and_is_stored_once(tmp_path):
    evaluations = plan(toy_request(defenses=("toy-crash",), attacks=("pgd:steps=3",)))
    for _ in range(2):
        results = list(run_evaluations(evaluations, Store(tmp_path), Execution(), shared=True))
        assert [bool(one.failure) for one in results] == [False, True]
    assert len(list(tmp_path.glob("*.error.json"))) == 1


def test_what_cannot_be_built_leaves_nothing_behind(tmp_path):
    evaluations = plan(toy_request(defenses=("toy-thief",), attacks=("pgd",)))
    results = list(run_evaluations(evaluations, Store(tmp_path / "out"), Execution(), shared=True))
    assert [bool(one.rejected) for one in results] == [True]
    Store(tmp_path / "out").drop_empty()
    assert not (tmp_path / "out").exists()


def test_processes_make_the_records_of_one(tmp_path):
    evaluations = plan(DIGITS)
    expected = alone(tmp_path / "alone", evaluations)
    store, notes = Store(tmp_path / "two"), []
    threads = torch.get_num_threads()
    results = list(
        run_in_processes(
            evaluations, [DIGITS], store, Execution(batch_size=64), Team(2), notes.append
        )
    )
    assert records(tmp_path / "two") == expected and len(results) == 2
    assert notes == [] and torch.get_num_threads() == threads


def worker_process(job):
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.execution.worker"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(job.to_json().encode() + b"\n")
    process.stdin.flush()
    return process


def test_a_worker_does_its_job_and_ends_with_its_parent(tmp_path):
    job = Job(requests=(DIGITS,), out=tmp_path / "out", device="cpu", batch_size=64, threads=1)
    long = job.model_copy(
        update={"requests": (DIGITS.model_copy(update={"attacks": ("pgd:steps=100000",)}),)}
    )
    whole = worker_process(job)
    assert whole.wait(200) == 0, whole.stderr.read()
    whole.stdin.close()
    assert records(tmp_path / "out") == alone(tmp_path / "alone", plan(DIGITS))
    left = worker_process(long.model_copy(update={"out": tmp_path / "left"}))
    while not list(tmp_path.glob("left/.work/*/*/claim-*")):
        assert left.poll() is None
        time.sleep(0.05)
    left.stdin.close()
    assert left.wait(60) == LEFT
    assert not list((tmp_path / "left").glob("*.json"))


def test_a_process_that_dies_is_told_and_its_work_done(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "can_copy", lambda _: False)
    monkeypatch.setattr(local, "COMMAND", (sys.executable, "-c", "import sys; sys.exit('no room')"))
    evaluations = plan(toy_request(attacks=("pgd:steps=40",)))
    told = []
    results = list(
        run_in_processes(
            evaluations,
            [],
            Store(tmp_path),
            Execution(batch_size=64),
            Team(2),
            told.append,
        )
    )
    assert all(one.record for one in results)
    assert len(told) <= 1 and all("exit code 1 (no room)" in one for one in told)


@pytest.mark.parametrize(("free", "started"), [(0, 0), (1 << 50, 3)])
def test_no_more_processes_than_memory_bears(monkeypatch, tmp_path, free, started):
    monkeypatch.setattr(local, "free_bytes", lambda: free)
    monkeypatch.setattr(local, "COMMAND", (sys.executable, "-c", "input(); input()"))
    job = Job(requests=(), out=tmp_path, device="cpu", batch_size=1, threads=1)
    helpers = local._Started(job, 3)
    helpers.start()
    assert len(helpers._running) == started
    assert all("EOFError" in told for told in helpers.end())
    helpers.start()
    assert len(helpers._running) == started, "none is started after the end"


def dies_by_signal():
    os.kill(os.getpid(), signal.SIGKILL)


def dies_of_an_error():
    raise ValueError("no luck")


@pytest.mark.parametrize(
    ("work", "said"),
    [(dies_by_signal, "exit code -9"), (dies_of_an_error, "exit code 1 (ValueError: no luck)")],
)
def test_a_copy_that_dies_is_told_and_one_that_is_not_wanted_is_not(work, said):
    copies = Copies(work)
    copies.start(2)
    os.waitid(os.P_PID, copies._first, os.WEXITED | os.WNOWAIT)
    assert [said in line for line in copies.end()] == [True, True]
    assert Copies(work).end() == []


def test_copies_end_with_their_parent(tmp_path):
    """It is killed, and can tell them nothing."""
    read, write = os.pipe()

    def parent():
        copies = Copies(lambda: (os.write(write, b"begun"), signal.pause()))
        copies.start(1)
        signal.pause()

    child = in_child(parent)
    assert os.read(read, 5) == b"begun"
    os.close(write)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"", "the copies that hold the other end are gone"
    os.close(read)


def test_a_short_job_gets_no_help(tmp_path, monkeypatch):
    monkeypatch.setattr(local._Helpers, "start", lambda self: pytest.fail("help came"))
    evaluations = plan(toy_request(attacks=("null",)))
    execution = Execution(batch_size=64)
    monkeypatch.setattr(local._Copied, "patience", 100.0)
    results = run_in_processes(evaluations, [], Store(tmp_path), execution, Team(8, 100.0), print)
    assert all(one.record for one in results)


def test_the_team_is_what_was_asked_for_else_the_cores(monkeypatch):
    monkeypatch.delenv("BENCH_WORKERS")
    monkeypatch.setattr(local, "cores", lambda: 6)
    assert read_team(None, CPU) == Team(6, local.PATIENCE_SECONDS)
    assert read_team(3, CPU) == Team(3)
    monkeypatch.setenv("BENCH_WORKERS", "4")
    assert read_team(None, CPU) == Team(4) and read_team(2, CPU) == Team(2)
    monkeypatch.setenv("BENCH_WORKERS", "many")
    with pytest.raises(BadInput, match="workers is 'many': give 1 to"):
        read_team(None, CPU)


@pytest.mark.parametrize(
    ("quota", "expected"), [("250000 100000", 2), ("max 100000", 5), ("50000 100000", 1)]
)
def test_cores_are_those_that_this_process_may_use(monkeypatch, tmp_path, quota, expected):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(local, "_CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    assert local.cores() == expected


def test_no_workers_are_refused(capsys, tmp_path):
    line = refused(
        capsys,
        tmp_path,
        "run",
        "--defense",
        "undefended",
        "--attack",
        "null",
        "--workers",
        "0",
        "--out",
        str(tmp_path / "out"),
    )
    assert "workers is '0': give 1 to 1024" in line


def test_a_job_comes_through_a_pipe_as_it_was():
    given = Request(defense=("tte",), attack="pgd+replay", eps="8/255", seed=(1, 2), n=7)
    job = Job(requests=(given,), out="x y", device="cpu", batch_size=3, threads=2)
    again = Job.model_validate_json(job.to_json())
    assert again == job and again.requests[0].model_fields_set == given.model_fields_set
    assert np.array_equal(again.requests[0].epsilons, [8 / 255])


def test_what_was_asked_for_once_is_asked_for(tmp_path):
    asked, beside = toy_request(defenses=("undefended",)), toy_request()
    for requests in ([asked, beside], [beside, asked]):
        (base,) = (one for one in plan_all(requests) if one.defense.name == "undefended")
        assert base.asked


def test_a_model_of_python_is_evaluated_by_copies_of_this_process(tmp_path, monkeypatch):
    """Only they have it; where there can be none, one process does the work and says so."""
    monkeypatch.delenv("BENCH_WORKERS")
    model = make_model()
    images = torch.rand(192, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    given = {
        "dataset": (images.numpy(), model(images).argmax(1).numpy()),
        "attacks": "pgd:steps=2",
        "eps": 0.1,
        "batch_size": 64,
    }
    log, compute = tmp_path / "log", ShardComputer.__call__

    def logged(self, shard):
        with log.open("a") as file:
            file.write(f"{os.getpid()} {shard}\n")
        time.sleep(0.3)
        return compute(self, shard)

    monkeypatch.setattr(ShardComputer, "__call__", logged)
    for folder, workers in (("one", 1), ("two", 2)):
        bench.evaluate(model, out=tmp_path / folder, workers=workers, **given)
    assert records(tmp_path / "two") == records(tmp_path / "one")
    lines = log.read_text().splitlines()
    assert len(lines) == 6 and len({line.split()[0] for line in lines}) == 2
    monkeypatch.setattr(local, "can_copy", lambda _: False)
    with pytest.warns(UserWarning, match="evaluated by one process here"):
        bench.evaluate(model, workers=2, **given)


def test_several_computations_share_processes_and_keep_their_order(monkeypatch):
    def compute(place):
        time.sleep(0.1)
        return f"{place} {os.getpid()}".encode()

    made = [one.split() for one in several(12, compute, CPU, 2, print)]
    assert [int(place) for place, _ in made] == list(range(12))
    assert len({pid for _, pid in made}) == 2
    alone = [one.split() for one in several(3, compute, CPU, 1, print)]
    assert {int(pid) for _, pid in alone} == {os.getpid()}
    assert several(0, compute, CPU, 2, print) == []


def test_what_one_of_several_raises_is_raised():
    def compute(place):
        raise BadInput(f"{place} cannot be")

    with pytest.raises(BadInput, match="cannot be"):
        several(3, compute, CPU, 2, lambda _: None)
