"""Workers of a Ray cluster. Nothing but JSON, and bytes of our own formats, travels."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import torch
from pydantic import Field

from bench.engine.execution import Execution, Progress
from bench.engine.memory import MEMORY_VARIABLE
from bench.engine.run import Result
from bench.errors import BadInput, one_line
from bench.execution.driver import Crew, Driver
from bench.execution.executor import Executor, Work, elsewhere, extra
from bench.execution.job import Job
from bench.execution.local import MOST_WORKERS, cores, given_workers
from bench.execution.remote import converse
from bench.spec import Params

_PASSED_ON = ("BENCH_DATA_ROOT", "BENCH_CACHE", "OMP_WAIT_POLICY", MEMORY_VARIABLE)


class RayParams(Params):
    address: str | None = Field(None, description="of a running cluster, such as auto")
    cpus: float = Field(1.0, gt=0, description="CPUs that a worker takes")
    gpus: float = Field(0.0, ge=0, description="GPUs that a worker takes, also a share of one")


class RayExecutor(Executor):
    """Workers of a Ray cluster, or of a Ray of this machine's own.

    Args:
        params: where and how large they are.
        workers: how many; None for as many as the cluster bears.
    """

    def __init__(self, params: RayParams, workers: int | None) -> None:
        self.params, self.workers = params, given_workers(workers)
        self._ray = extra("ray", "ray")

    def execution(
        self, device: str, batch_size: int | None, progress: Progress | None, compile: str
    ) -> Execution:
        return elsewhere(self.params.gpus, device, batch_size, progress, compile)

    def run(self, work: Work, note: Callable[[str], None]) -> Iterator[Result]:
        if work.execution.weights:
            raise BadInput(
                "--weights names a folder that the nodes of a Ray cluster need not have: leave it "
                "out, or compute with --executor local"
            )
        # Ray draws from Python's global generator, which is left as it was found.
        state = random.getstate()
        try:
            results = self._computed(work, note)
        finally:
            random.setstate(state)
        yield from results

    def _computed(self, work: Work, note: Callable[[str], None]) -> list[Result]:
        ours = not self._ray.is_initialized()
        if ours:
            self._connect()
        try:
            size = self.workers or self._bearable()
            job = Job(
                requests=tuple(work.requests),
                out=work.store.folder,
                device=str(work.execution.device),
                batch_size=work.execution.batch_size,
                compile=work.execution.compile,
                threads=max(1, int(self.params.cpus)),
                ids=tuple(one.id for one in work.evaluations),
            )
            crew = RayCrew(self._ray, job, self.params)
            return Driver(work.evaluations, work.store, work.execution, crew, note).run(size)
        finally:
            if ours:
                self._ray.shutdown()

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.params.address is None:
            how |= {"num_cpus": cores(), "include_dashboard": False}
            how |= {"_node_ip_address": "127.0.0.1"}
        try:
            # Without an address Ray would join whatever cluster this machine began last.
            self._ray.init(address=self.params.address or "local", **how)
        except Exception as error:
            where = self.params.address or "a Ray of this machine"
            raise BadInput(
                f"cannot reach {where} ({one_line(error)}): start a cluster by `ray start`, and "
                "give its address"
            ) from error

    def _bearable(self) -> int:
        there, params = self._ray.cluster_resources(), self.params
        most = int(there.get("CPU", 0) / params.cpus)
        if params.gpus:
            most = min(most, int(there.get("GPU", 0) / params.gpus))
        if most < 1:
            raise BadInput(
                f"the cluster has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs, "
                f"too few for a worker of {params.cpus:g} and {params.gpus:g}: ask for less"
            )
        return min(most, MOST_WORKERS)


class RayCrew(Crew):
    """Actors of Ray, of which each does one job.

    Args:
        ray: the module.
        job: what they are told.
        params: what each of them takes.
    """

    def __init__(self, ray: Any, job: Job, params: RayParams) -> None:
        self._ray, self._job = ray, job.to_json()
        variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        variables["OMP_NUM_THREADS"] = str(job.threads)
        self._kind = ray.remote(
            num_cpus=params.cpus,
            num_gpus=params.gpus,
            max_restarts=0,
            runtime_env={"env_vars": variables},
        )(Worker)
        self._actors = dict[int, Any]()
        self._pending = dict[Any, int]()
        self._number = 0

    def start(self) -> int:
        self._number += 1
        self._actors[self._number] = self._kind.remote(self._job)
        self.send(self._number, b"")
        return self._number

    def wait(self, seconds: float) -> list[tuple[int, bytes | str]]:
        said = list[tuple[int, bytes | str]]()
        waiting = list(self._pending)
        done, _ = self._ray.wait(waiting, num_returns=1, timeout=seconds)
        if not done and not any(node["Alive"] for node in self._ray.nodes()):
            raise BadInput(
                "no node of the cluster is left: start it again, and the same command goes on"
            )
        more, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for one in dict.fromkeys((*done, *more)):
            worker = self._pending.pop(one)
            try:
                said.append((worker, self._ray.get(one)))
            except self._ray.exceptions.RayError as error:
                said.append((worker, one_line(error)))
        return said

    def send(self, worker: int, answer: bytes) -> None:
        self._pending[self._actors[worker].step.remote(answer)] = worker

    def stop(self, worker: int) -> None:
        self._pending = {one: other for one, other in self._pending.items() if other != worker}
        self._ray.kill(self._actors.pop(worker))


class Worker:
    """What Ray runs: it works in a thread, and each step hands out what that says next.

    Args:
        job: as JSON.
    """

    def __init__(self, job: str) -> None:
        self._said, self._answers = SimpleQueue[bytes](), SimpleQueue[bytes]()
        threading.Thread(target=self._work, args=(job,), daemon=True).start()

    def step(self, answer: bytes) -> bytes:
        """Take the answer to the last message, if there was one; returns the next one."""
        if answer:
            self._answers.put(answer)
        return self._said.get()

    def _work(self, text: str) -> None:
        job = Job.model_validate_json(text)
        torch.set_num_threads(job.threads)
        self._said.put(converse(job, self._ask))

    def _ask(self, text: bytes) -> bytes:
        self._said.put(text)
        return self._answers.get()
