"""Where evaluations are computed: one interface, and the word by which a user chooses."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.engine.cost import passes_of
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, Progress, default_batch_size, read_execution
from bench.engine.request import Request
from bench.engine.run import Result, run_evaluations
from bench.errors import BadInput
from bench.execution.local import read_team, run_in_processes
from bench.results.agenda import Item
from bench.results.store import Store
from bench.spec import Params, nearest, parse, read_params


@dataclass(frozen=True)
class Work:
    """What is to be computed.

    Attributes:
        evaluations: a base stands before the rows that are compared with it.
        requests: what they were planned from, for those who plan them again.
        store: where records go.
        execution: how to compute.
    """

    evaluations: Sequence[Evaluation]
    requests: Sequence[Request]
    store: Store
    execution: Execution


def items_of(evaluations: Sequence[Evaluation], store: Store) -> dict[str, Item]:
    """What is to be computed of these, by id: those that are not stored."""
    passes = {one.id: passes_of(one) for one in evaluations if store.find(one.id) is None}
    known = [each.total for each in passes.values() if each is not None]
    usual = sum(known) / len(known) if known else 1.0
    items = {}
    for one in evaluations:
        if one.id in passes:
            each, images = passes[one.id], len(one.setup.images)
            total = usual if each is None else each.total
            items[one.id] = Item(title=str(one), images=images, passes=total * images)
    return items


class Executor(ABC):
    """Computes evaluations somewhere; the records are those of one process."""

    def execution(
        self, device: str, batch_size: int | None, progress: Progress | None, compile: str
    ) -> Execution:
        """How to compute there, from what a user wrote. Raises `BadInput` as `read_execution`."""
        return read_execution(device, batch_size, progress, compile)

    @abstractmethod
    def run(self, work: Work, note: Callable[[str], None]) -> Iterator[Result]:
        """Compute; `note` is called with what a user should know, one line each.

        Raises:
            BadInput: where that is not possible.
        """


class Inline(Executor):
    """This process alone."""

    def run(self, work: Work, note: Callable[[str], None]) -> Iterator[Result]:
        return run_evaluations(work.evaluations, work.store, work.execution)


class Local(Executor):
    """This process, and others on this machine.

    Args:
        workers: how many; None for what the job and the machine bear.
    """

    def __init__(self, workers: int | None) -> None:
        self._workers = workers

    def run(self, work: Work, note: Callable[[str], None]) -> Iterator[Result]:
        team = read_team(self._workers, work.execution.device)
        return run_in_processes(
            work.evaluations, work.requests, work.store, work.execution, team, note
        )


def read_executor(text: str, workers: int | None) -> Executor:
    """The executor that a spec names, such as `local` or `ray:address=auto,gpus=0.5`.

    Args:
        text: the spec.
        workers: how many processes, where the user said so.

    Raises:
        BadInput: where there is none of this name, or what it needs is not installed.
    """
    spec = parse(text)
    if spec.name not in EXECUTORS:
        raise BadInput(f"no executor {spec.name!r}.{nearest(spec.name, EXECUTORS)}")
    what = f"executor {spec.name!r}"
    # What is not asked for is not imported: it stands on this module, and takes time.
    if spec.name == "ray":
        from bench.execution.ray_workers import RayExecutor, RayParams

        return RayExecutor(read_params(RayParams, spec, what), workers)
    if spec.name == "slurm":
        from bench.execution.slurm_jobs import SlurmExecutor, SlurmParams

        return SlurmExecutor(read_params(SlurmParams, spec, what), workers)
    read_params(Params, spec, what)
    if spec.name == "local":
        return Local(workers)
    if workers not in (None, 1):
        raise BadInput(f"executor inline is one process, and --workers {workers}: leave one out")
    return Inline()


EXECUTORS = ("inline", "local", "ray", "slurm")


def extra(module: str, name: str) -> Any:
    """A module that an extra of this package brings. Raises `BadInput` where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(
            f"executor {name!r} needs the package {module}, which is not installed: pip install "
            f"'adversarial-bench[{name}]'"
        ) from error


def elsewhere(
    gpus: float, device: str, batch_size: int | None, progress: Progress | None, compile: str
) -> Execution:
    """How workers on other machines compute, whose devices are not seen from here.

    Args:
        gpus: how many a worker has.
        device, batch_size, progress, compile: as a user wrote them.

    Raises:
        BadInput: as `read_execution`, and where the device is not what workers have.
    """
    if not device.startswith(("auto", "cuda" if gpus else "cpu")):
        raise BadInput(
            f"--device {device} and workers with gpus={gpus:g} do not go together: drop --device"
        )
    if not gpus:
        return read_execution("cpu", batch_size, progress, compile)
    cuda = torch.device("cuda")
    size = default_batch_size(cuda) if batch_size is None else batch_size
    return replace(read_execution("cpu", size, progress, compile), device=cuda)
