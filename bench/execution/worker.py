"""A worker process: `python -m bench.execution.worker`, with its job on the first line of stdin.

It takes part in what another process has begun, by the claims on the shards, and ends when all is
done or when its stdin closes, since then the process that started it is gone.
"""

from __future__ import annotations

import os
import sys

import torch

from bench.allocator import keep_freed_memory
from bench.engine.execution import read_execution
from bench.engine.plan import plan_all
from bench.engine.run import run_evaluations
from bench.execution.copies import LEFT, end_with
from bench.execution.job import Job
from bench.results.store import Store


def work(job: Job) -> None:
    """Take part in a job until all of it is done."""
    torch.set_num_threads(job.threads)
    execution = read_execution(job.device, job.batch_size, compile=job.compile, weights=job.weights)
    store = Store(job.out)
    for _ in run_evaluations(plan_all(job.requests), store, execution, shared=True):
        pass


def main() -> None:
    """Read the job, watch the parent, work."""
    descriptor = sys.stdin.fileno()
    told = b""
    while not told.endswith(b"\n"):
        more = os.read(descriptor, 1 << 16)
        if not more:
            os._exit(LEFT)
        told += more
    end_with(descriptor)
    keep_freed_memory()
    work(Job.model_validate_json(told))


if __name__ == "__main__":
    main()
