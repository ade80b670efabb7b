"""Jobs of an array: the records are those of one process, also where a job is queued again."""

import json
import os
import signal
import sys
import time

import pytest

from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.errors import BadInput
from bench.execution.executor import Work, read_executor
from bench.execution.slurm_jobs import SlurmExecutor
from bench.results.store import Store
from tests.execution.test_local import alone, records

REQUEST = Request(defense=("undefended",), attack="pgd:steps=2", n=128)


def interrupted(jobs, store, evaluation):
    """Preempt the job as Slurm does, once it has claimed a shard."""
    # A process of its own takes seconds to import torch.
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for owner in store.work(evaluation.id).glob("*/claim-*/owner.json"):
            try:
                pid = json.loads(owner.read_text())["pid"]
            except (OSError, ValueError):
                continue
            os.kill(pid, signal.SIGUSR2)
            return
        assert not jobs[0].done(), "it ended before it could be preempted"
        time.sleep(0.005)
    pytest.fail("the job claimed nothing")


def test_a_job_that_is_preempted_is_queued_again_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    evaluations, store, seen = plan(REQUEST), Store(tmp_path / "jobs"), []
    wait = SlurmExecutor._wait

    def preempted(self, jobs, told, where, note):
        interrupted(jobs, store, evaluations[0])
        return wait(self, jobs, told, where, note)

    def progress(evaluation, images, total, right):
        seen.append(images)

    monkeypatch.setattr(SlurmExecutor, "_wait", preempted)
    executor = read_executor("slurm:cluster=local", 1)
    execution = Execution(batch_size=64, progress=progress)
    notes = []
    (result,) = executor.run(Work(evaluations, [REQUEST], store, execution), notes.append)
    assert result.computed and sum(seen) == 128 and len(notes) == 1
    assert records(store.folder) == alone(tmp_path / "alone", evaluations)
    assert not list((store.folder / ".work").iterdir())
    (again,) = executor.run(Work(evaluations, [REQUEST], store, execution), notes.append)
    assert not again.computed and len(notes) == 1, "nothing was submitted"


def test_what_is_not_there_is_told_first(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadInput, match="finds no sbatch here"):
        read_executor("slurm", None)
    for name in ("ray", "submitit"):
        monkeypatch.setitem(sys.modules, name, None)
    for spec, extra in (("ray", "ray"), ("slurm", "slurm")):
        with pytest.raises(BadInput, match=rf"not installed: pip install '.*\[{extra}\]'"):
            read_executor(spec, None)


@pytest.mark.parametrize(
    ("spec", "workers", "said"),
    [
        ("cloud", None, "no executor 'cloud'. Known: inline, local, ray, slurm"),
        ("inline", 2, "executor inline is one process"),
        ("local:a=1", None, "executor 'local' has no parameter 'a'"),
    ],
)
def test_executors_that_are_none(spec, workers, said):
    with pytest.raises(BadInput, match=said):
        read_executor(spec, workers)


@pytest.mark.parametrize(("gpus", "device", "said"), [(1, "cpu", "drop"), (0, "cuda", "drop")])
def test_devices_of_workers_elsewhere(gpus, device, said):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    executor = read_executor("slurm:cluster=local", 1)
    executor.params = executor.params.model_copy(update={"gpus": gpus})
    with pytest.raises(BadInput, match=said):
        executor.execution(device, None, None, "off")
    there = executor.execution("auto", None, None, "off")
    assert (there.device.type, there.batch_size) == (("cuda", 1024) if gpus else ("cpu", 128))
