"""Runs evaluations: build, attack, judge, record."""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.checks.shard import ShardChecks
from bench.defense import DefendedClassifier
from bench.engine.build import build
from bench.engine.checking import shard_checks
from bench.engine.compute import ShardComputer, merged
from bench.engine.environment import environment
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, exact_float32
from bench.engine.inspection import Inspection
from bench.engine.memory import is_out_of_memory
from bench.engine.prepare import Prepared, by_base, prepare
from bench.engine.probing import RowProbe, row_probe
from bench.engine.recording import make_record, now, outcomes_of, searched_with
from bench.engine.searching import quick_form
from bench.engine.shard_check import ShardCheck
from bench.engine.shards import (
    WAIT_SECONDS,
    Arrays,
    Busy,
    Shard,
    Workspace,
    complete,
    shards_of,
)
from bench.errors import BadInput
from bench.results.outcomes import Outcomes
from bench.results.record import Failure, Record
from bench.results.store import Store
from bench.results.weights import FOLDER
from bench.storage.files import CannotWrite, cannot_write
from bench.victim import frozen

PROBES = "probes"
"""The folder of a row's probes, beside its shards."""


@dataclass
class Joint:
    """What this process knows of an evaluation that others work on as well.

    Attributes:
        work: the shared folder; None before it was built here.
        reported: the shards that progress was told of.
    """

    work: Workspace | None = None
    reported: set[Shard] = field(default_factory=set)


@dataclass(frozen=True)
class Result:
    """What became of one evaluation.

    Attributes:
        record: the result, where there is one.
        failure: what crashed.
        rejected: bad input that only building the defense could show; it leaves no file.
        path: the file of the record or failure.
        computed: whether it was computed now, and not stored before.
    """

    evaluation: Evaluation
    record: Record | None = None
    failure: Failure | None = None
    rejected: BadInput | None = None
    path: Path | None = None
    computed: bool = True


def run_evaluations(
    evaluations: Sequence[Evaluation], store: Store, execution: Execution, shared: bool = False
) -> Iterator[Result]:
    """Run evaluations one after the other. A stored one is not computed again; a crash becomes
    a `Failure`.

    A base is attacked once the first row that is compared with it has been built. Where none can
    be, the base is not run, unless it was asked for.

    Args:
        evaluations: what to run; a base stands before the rows that are compared with it.
        store: where records go.
        execution: how to compute.
        shared: whether other processes are given the same evaluations. What they are at is left to
            them, and what they finished is told when it is met; the records are those that one
            process makes.

    Raises `BadInput` before anything is computed where a record of an unknown schema would be
    overwritten, and at once where the disk is full: what was finished stays.
    """
    queue = _Queue(evaluations, store, execution, shared)
    left, join = list(evaluations), not shared
    while left:
        busy = []
        for evaluation in left:
            try:
                yield from queue.run(evaluation, join)
            except Busy:
                busy.append(evaluation)
        stuck = len(busy) == len(left)
        if stuck and join:
            time.sleep(WAIT_SECONDS)
        # Another process's evaluation must be built here as well: first what nobody has begun.
        left, join = busy, stuck


class _Queue:
    """Evaluations to run, and what is known of them so far."""

    def __init__(
        self, evaluations: Sequence[Evaluation], store: Store, execution: Execution, shared: bool
    ) -> None:
        self._store, self._execution, self._shared = store, execution, shared
        self._compared = by_base(evaluations)
        self._open = {evaluation.id for evaluation in evaluations}
        # Raises where a record is of an unknown schema, before anything is computed.
        self._stored = {one.id for one in evaluations if store.find(one.id)}
        self._prepared = dict[str, Prepared]()
        self._joint = defaultdict[str, Joint](Joint)

    def run(self, evaluation: Evaluation, join: bool) -> Iterator[Result]:
        """Bring one to its end; with it end the rows of a base that cannot be built.

        Args:
            evaluation: what to run.
            join: whether to help where another process has begun.

        Raises `Busy` where other processes are at it, or at the base that it waits for.
        """
        if evaluation.id not in self._open:
            return
        stored = self._store.find(evaluation.id)
        if stored is not None:
            self._store.clear(evaluation.id)
            yield self._ended(self._found(evaluation, stored))
            return
        if self._shared:
            self._check_free(evaluation, join)
        rows = _waiting(self._compared.get(evaluation.id, []), self._store)
        possible = not rows or any(row.id in self._prepared for row in rows)
        for row in rows:
            if possible or row.id not in self._open:
                continue
            try:
                self._prepared[row.id], possible = prepare(row, self._execution), True
            except Exception as error:
                yield self._ended(_unfinished(row, error, self._store, self._execution))
        if possible or evaluation.asked:
            yield self._computed(evaluation)
        else:
            self._store.clear(evaluation.id, shards=False)
        self._open.discard(evaluation.id)

    def _computed(self, evaluation: Evaluation) -> Result:
        prepared = self._prepared.pop(evaluation.id, None)
        joint = self._joint[evaluation.id] if self._shared else None
        try:
            record = run_evaluation(
                evaluation, self._store, self._execution, prepared=prepared, joint=joint
            )
        except Busy:
            raise
        except Exception as error:
            return _unfinished(evaluation, error, self._store, self._execution)
        return Result(evaluation, record, path=self._store.folder / f"{record.stem}.json")

    def _found(self, evaluation: Evaluation, record: Record) -> Result:
        """The result of an evaluation that was stored, or that another process has just ended."""
        path = self._store.folder / f"{record.stem}.json"
        if evaluation.id in self._stored:
            return Result(evaluation, record, path=path, computed=False)
        total = len(evaluation.setup.images)
        rest = total - sum(end - start for start, end in self._joint[evaluation.id].reported)
        if self._execution.progress and rest:
            self._execution.progress(evaluation, rest, total, record.metrics.adversarial.mean.value)
        return Result(evaluation, record, path=path)

    def _ended(self, result: Result) -> Result:
        self._open.discard(result.evaluation.id)
        return result

    def _check_free(self, evaluation: Evaluation, join: bool) -> None:
        """Raise `Busy` where its base is not finished, or others are at it."""
        base = evaluation.base()
        if base is not None and base.id in self._open and self._store.find(base.id) is None:
            raise Busy
        work = self._joint[evaluation.id].work
        if work is not None and not _is_free(work, shards_for(evaluation, self._execution)):
            raise Busy
        if not (self._store.begin(evaluation.id) or join):
            raise Busy


def _waiting(rows: Sequence[Evaluation], store: Store) -> Sequence[Evaluation]:
    """The rows to build before their base runs; none where one of them is finished, since then the
    base is of use.
    """
    return [] if any(store.find(row.id) for row in rows) else rows


def _unfinished(
    evaluation: Evaluation, error: Exception, store: Store, execution: Execution
) -> Result:
    """What becomes of an evaluation that ended with an error."""
    finished = None if isinstance(error, BadInput) else store.find(evaluation.id)
    if finished is not None:
        return Result(evaluation, record=finished, path=store.folder / f"{finished.stem}.json")
    _raise_if_full(error)
    if isinstance(error, BadInput):
        store.clear(evaluation.id, shards=False)
        return Result(evaluation, rejected=error)
    failure = _failure(evaluation, error, execution)
    return Result(evaluation, failure=failure, path=_save_failure(store, failure))


def _raise_if_full(error: Exception) -> None:
    """Every further evaluation would fail alike where the disk is full."""
    told = cannot_write(error)
    if told is not None:
        raise told


def _save_failure(store: Store, failure: Failure) -> Path:
    try:
        return store.save_failure(failure)
    except CannotWrite as full:
        error = failure.error.partition("\n")[0]
        raise BadInput(f"{full}; not written: {failure.id} failed with {error}") from full


def _failure(evaluation: Evaluation, error: Exception, execution: Execution) -> Failure:
    full = is_out_of_memory(error)
    return Failure(
        id=evaluation.id,
        title=evaluation.title,
        error=_out_of_memory(execution) if full else f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
        finished=now(),
    )


def _out_of_memory(execution: Execution) -> str:
    rows, device = execution.batch_size, execution.device
    smaller = f"give a smaller one, such as {rows // 4 or 1}" if rows > 1 else "use another device"
    return f"out of memory on {device} with --batch-size {rows}: {smaller}"


def run_evaluation(
    evaluation: Evaluation,
    store: Store,
    execution: Execution,
    shards: Sequence[Shard] | None = None,
    prepared: Prepared | None = None,
    joint: Joint | None = None,
) -> Record:
    """Compute an evaluation together with any other process at work on it; store its record.

    Args:
        shards: the order in which to take them; ascending by default.
        prepared: what `prepare` made of it; by default that is done here.
        joint: leave it where others are at all that is left, instead of waiting; by default wait.

    Raises:
        Busy: where it is left to others.
    """
    order = list(shards) if shards is not None else shards_for(evaluation, execution)

    def finished() -> bool:
        return work.ended(lambda: store.find(evaluation.id) is not None)

    prepared = prepared or prepare(evaluation, execution)
    defended, inspection = prepared.defended, prepared.inspection
    weights = prepared.weights
    with exact_float32(execution.device):
        # A defense that trains when it is built comes out otherwise on another device or number of
        # threads: never mix the two.
        check = ShardCheck(evaluation, defended)
        work = Workspace(store.place(evaluation.id, weights[:16]), check)
        with frozen(defended):
            checks = shard_checks(evaluation, defended, prepared.copies, execution, store)
            compute = ShardComputer(evaluation, defended, execution, checks, prepared.form)
            arrays, patient = None, joint is None
            joint = joint or Joint()
            joint.work = work
            report = _once(compute.report, joint.reported)
            done = complete(work, order, compute, finished, report, patient)
            if done is not None:
                row = row_probe(evaluation, defended, execution, merged(done), inspection)
                arrays = _with_probes(row, work, finished, patient)
    if arrays is None:
        record = store.find(evaluation.id)
        if record is None:
            raise RuntimeError(f"the record {evaluation.id} vanished while it was being finished")
        return record
    made_with = {
        **environment(execution.device),
        **searched_with(arrays),
        "weights": weights,
    }
    if prepared.file:
        made_with["weights_read"] = True
        _keep_weights(prepared.file, evaluation, store)
    record = make_record(evaluation, arrays, inspection, store, made_with)
    store.save(record)
    store.clear(evaluation.id)
    return record


def _keep_weights(file: Path, evaluation: Evaluation, store: Store) -> None:
    """Beside the new record, for whoever audits or verifies it."""
    store.write(str(Path(FOLDER) / file.name), file.read_bytes(), evaluation.id)


def _once(
    report: Callable[[Shard, Arrays], None], reported: set[Shard]
) -> Callable[[Shard, Arrays], None]:
    """The same, for each shard once."""

    def report_new(shard: Shard, arrays: Arrays) -> None:
        if shard not in reported:
            reported.add(shard)
            report(shard, arrays)

    return report_new


def _with_probes(
    row: RowProbe, work: Workspace, finished: Callable[[], bool], patient: bool
) -> Arrays | None:
    """A row's arrays with those of its probes, computed here or by another process; None if another
    one finished the row meanwhile.
    """
    whole = (0, len(row.evaluation.setup.images))
    probes = Workspace(work.place.within(PROBES), row.check)
    done = complete(probes, [whole], row, finished, lambda *_: None, patient)
    return None if done is None else {**row.attacked, **done[whole]}


def _is_free(work: Workspace, shards: Sequence[Shard]) -> bool:
    """Whether something is left of an evaluation that no other process is at."""
    whole = (0, shards[-1][1])
    return (
        Workspace(work.place.within(PROBES)).has_work([whole])
        if work.holds(shards)
        else work.has_work(shards)
    )


def compute_outcomes(evaluation: Evaluation, execution: Execution) -> Outcomes:
    """Compute the outcomes of one evaluation here and now, keeping nothing."""
    with exact_float32(execution.device):
        defended = build(evaluation, execution.device)
        return outcomes_of(evaluation, compute_arrays(evaluation, defended, execution))


def compute_arrays(
    evaluation: Evaluation,
    defended: DefendedClassifier,
    execution: Execution,
    checks: ShardChecks | None = None,
    inspection: Inspection | None = None,
) -> Arrays:
    """Attack and judge a built defense here and now, keeping nothing: as
    `compute.ShardComputer` describes it, of all shards.

    Args:
        checks: what is checked of each shard; nothing by default.
        inspection: what was known before; with it what the attack left is probed.
    """
    with exact_float32(execution.device), frozen(defended):
        form = quick_form(evaluation, defended, execution)
        compute = ShardComputer(evaluation, defended, execution, checks, form)
        arrays = merged({shard: compute(shard) for shard in shards_for(evaluation, execution)})
        if inspection is None:
            return arrays
        return arrays | row_probe(evaluation, defended, execution, arrays, inspection)()


def shards_for(evaluation: Evaluation, execution: Execution) -> list[Shard]:
    """The shards of an evaluation under this batch size."""
    random = evaluation.stochastic
    return shards_of(
        len(evaluation.setup.images),
        execution.batch_size,
        evaluation.attack.plugin.unit(random),
        random,
    )
