"""Workers that are jobs of a Slurm cluster, submitted as one array; they share the folder.

A job that is preempted or runs out of time is queued again and goes on: what was finished is on
disk.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from pydantic import Field

from bench.allocator import keep_freed_memory
from bench.engine.execution import Execution, Progress, read_execution
from bench.engine.plan import plan_all
from bench.engine.run import Result, run_evaluations
from bench.errors import BadInput, one_line
from bench.execution.driver import Told, result_of
from bench.execution.executor import Executor, Work, elsewhere, extra
from bench.execution.job import Job
from bench.execution.local import given_workers
from bench.results.store import Store
from bench.spec import Params

POLL_SECONDS = 2.0
WORKERS = 4
_MOST_TIMEOUTS = 1000


class SlurmParams(Params):
    partition: str | None = Field(None, description="where the jobs run")
    account: str | None = Field(None, description="who pays")
    minutes: int = Field(240, ge=1, description="time limit of a job; it is queued again after it")
    cpus: int = Field(1, ge=1, description="CPUs of a job, and its torch threads")
    gpus: int = Field(0, ge=0, le=1, description="GPUs of a job")
    memory: float = Field(8.0, gt=0, description="GB of a job")
    cluster: Literal["slurm", "local"] = Field(
        "slurm", description="local: processes of this machine, to try it out"
    )


class SlurmExecutor(Executor):
    """Jobs of a Slurm cluster, which write to the folder that this command names.

    Args:
        params: what a job takes.
        workers: how many jobs; None for 4.
    """

    def __init__(self, params: SlurmParams, workers: int | None) -> None:
        self.params, self.workers = params, given_workers(workers) or WORKERS
        self._submitit = extra("submitit", "slurm")
        if params.cluster == "slurm" and shutil.which("sbatch") is None:
            raise BadInput(
                "executor slurm finds no sbatch here: run it where jobs are submitted, or try it "
                "out by slurm:cluster=local"
            )

    def execution(
        self, device: str, batch_size: int | None, progress: Progress | None, compile: str
    ) -> Execution:
        return elsewhere(self.params.gpus, device, batch_size, progress, compile)

    def run(self, work: Work, note: Callable[[str], None]) -> Iterator[Result]:
        stored = {one.id for one in work.evaluations if work.store.find(one.id)}
        rejected: dict[str, str] = {}
        if len(stored) < len(work.evaluations):
            told = Told([one for one in work.evaluations if one.id not in stored], work.execution)
            rejected = self._jobs(work, told, note)
        for one in work.evaluations:
            result = result_of(one, work.store, rejected.get(one.id), one.id not in stored)
            if result:
                yield result

    def _jobs(self, work: Work, told: Told, note: Callable[[str], None]) -> dict[str, str]:
        """Submit, and wait until the work is done; returns what was rejected, and why."""
        job = Job(
            requests=tuple(work.requests),
            out=work.store.folder.absolute(),
            device=str(work.execution.device),
            batch_size=work.execution.batch_size,
            compile=work.execution.compile,
            weights=work.execution.weights and work.execution.weights.absolute(),
            threads=self.params.cpus,
        )
        folder = work.store.work(f"slurm-{uuid.uuid4().hex[:8]}").absolute()
        executor = self._executor(folder)
        jobs = executor.map_array(Part(), [job.to_json()] * self.workers)
        note(f"{len(jobs)} jobs submitted: {', '.join(str(one.job_id) for one in jobs)}")
        try:
            return self._wait(jobs, told, work.store, note)
        finally:
            for one in jobs:
                if not one.done():
                    one.cancel(check=False)
            shutil.rmtree(folder, ignore_errors=True)
            work.store.sweep(one.id for one in work.evaluations)

    def _wait(
        self, jobs: list[Any], told: Told, store: Store, note: Callable[[str], None]
    ) -> dict[str, str]:
        problems: list[str] = []
        left = list(jobs)
        while left:
            told.look(store)
            for one in [job for job in left if job.done()]:
                left.remove(one)
                try:
                    # A worker that ends has seen the end of all evaluations.
                    rejected: dict[str, str] = json.loads(one.result())
                except Exception as error:
                    problems.append(one_line(error))
                    note(f"job {one.job_id} ended ({problems[-1]}): the others do its work")
                else:
                    told.look(store)
                    return rejected
            time.sleep(POLL_SECONDS if self.params.cluster == "slurm" else 0.2)
        raise BadInput(
            f"all jobs ended before their work did ({problems[-1]}): the same command goes on"
        )

    def _executor(self, folder: Any) -> Any:
        params = self.params
        try:
            executor = self._submitit.AutoExecutor(
                folder,
                cluster=params.cluster,
                slurm_max_num_timeout=_MOST_TIMEOUTS,
                local_max_num_timeout=_MOST_TIMEOUTS,
            )
        except Exception as error:
            raise BadInput(
                f"submitit cannot use {params.cluster} here ({one_line(error)})"
            ) from error
        named = {"slurm_partition": params.partition, "slurm_account": params.account}
        executor.update_parameters(
            name="bench",
            timeout_min=params.minutes,
            cpus_per_task=params.cpus,
            gpus_per_node=params.gpus,
            mem_gb=params.memory,
            **{key: value for key, value in named.items() if value is not None},
        )
        return executor


class Part:
    """What a job does; submitit queues it again where `checkpoint` says so."""

    def __call__(self, text: str) -> str:
        """Take part in a job; returns the evaluations that cannot be, and why, as JSON."""
        job = Job.model_validate_json(text)
        torch.set_num_threads(job.threads)
        keep_freed_memory()
        execution = read_execution(
            job.device, job.batch_size, compile=job.compile, weights=job.weights
        )
        evaluations = plan_all(job.requests)
        results = run_evaluations(evaluations, Store(job.out), execution, shared=True)
        rejected = {one.evaluation.id: str(one.rejected) for one in results if one.rejected}
        return json.dumps(rejected)

    def checkpoint(self, text: str) -> Any:
        """The same job again: finished shards are on disk."""
        return extra("submitit", "slurm").helpers.DelayedSubmission(self, text)
