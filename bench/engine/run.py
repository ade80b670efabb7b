"""Runs evaluations: build, attack, judge, record."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from bench.engine.recording import make_record, now, outcomes_of
from bench.engine.shard_check import ShardCheck
from bench.engine.shards import Arrays, Shard, Workspace, complete, shards_of
from bench.errors import BadInput
from bench.results.outcomes import Outcomes
from bench.results.record import Failure, Record
from bench.results.store import Store
from bench.storage.files import CannotWrite, cannot_write
from bench.victim import frozen


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
    evaluations: Sequence[Evaluation], store: Store, execution: Execution
) -> Iterator[Result]:
    """Run evaluations one after the other. A stored one is not computed again; a crash becomes
    a `Failure`.

    A base is attacked once the first row that is compared with it has been built. Where none can
    be, the base is not run, unless it was asked for.

    Raises `BadInput` before anything is computed where a record of an unknown schema would be
    overwritten, and at once where the disk is full: what was finished stays.
    """
    for evaluation in evaluations:
        store.find(evaluation.id)
    compared, ready, told = by_base(evaluations), dict[str, Prepared](), set[str]()
    for evaluation in evaluations:
        if evaluation.id in told:
            continue
        stored = store.find(evaluation.id)
        if stored is not None:
            store.clear(evaluation.id)
            yield Result(
                evaluation, record=stored, path=store.folder / f"{stored.stem}.json", computed=False
            )
            continue
        possible = True
        for row in _waiting(compared.get(evaluation.id, []), store):
            try:
                ready[row.id], possible = prepare(row, execution), True
                break
            except Exception as error:
                possible = False
                told.add(row.id)
                yield _unfinished(row, error, store, execution)
        if not (possible or evaluation.asked):
            continue
        try:
            prepared = ready.pop(evaluation.id, None)
            record = run_evaluation(evaluation, store, execution, prepared=prepared)
            yield Result(evaluation, record=record, path=store.folder / f"{record.stem}.json")
        except Exception as error:
            yield _unfinished(evaluation, error, store, execution)


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
) -> Record:
    """Compute an evaluation together with any other process at work on it; store its record.

    Args:
        shards: the order in which to take them; ascending by default.
        prepared: what `prepare` made of it; by default that is done here.
    """
    order = list(shards) if shards is not None else _shards(evaluation, execution)

    def finished() -> bool:
        return store.find(evaluation.id) is not None

    prepared = prepared or prepare(evaluation, execution)
    defended, inspection = prepared.defended, prepared.inspection
    weights = prepared.weights
    with exact_float32(execution.device):
        # A defense that trains when it is built comes out otherwise on another device or number of
        # threads: never mix the two.
        check = ShardCheck(evaluation, defended)
        work = Workspace(store.work(evaluation.id) / weights[:16], check)
        with frozen(defended):
            checks = shard_checks(evaluation, defended, prepared.copies, execution, store)
            compute = ShardComputer(evaluation, defended, execution, checks)
            done = complete(work, order, compute, finished, compute.report)
            arrays = None
            if done is not None:
                row = row_probe(evaluation, defended, execution, merged(done), inspection)
                arrays = _with_probes(row, work.folder / "probes", finished)
    if arrays is None:
        record = store.find(evaluation.id)
        if record is None:
            raise RuntimeError(f"the record {evaluation.id} vanished while it was being finished")
        return record
    made_with = {**environment(execution.device), "weights": weights}
    record = make_record(evaluation, arrays, inspection, store, made_with)
    store.save(record)
    store.clear(evaluation.id)
    return record


def _with_probes(row: RowProbe, folder: Path, finished: Callable[[], bool]) -> Arrays | None:
    """A row's arrays with those of its probes, computed here or by another process; None if another
    one finished the row meanwhile.
    """
    whole = (0, len(row.evaluation.setup.images))
    done = complete(Workspace(folder, row.check), [whole], row, finished, lambda *_: None)
    return None if done is None else {**row.attacked, **done[whole]}


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
        compute = ShardComputer(evaluation, defended, execution, checks)
        arrays = merged({shard: compute(shard) for shard in _shards(evaluation, execution)})
        if inspection is None:
            return arrays
        return arrays | row_probe(evaluation, defended, execution, arrays, inspection)()


def _shards(evaluation: Evaluation, execution: Execution) -> list[Shard]:
    return shards_of(
        len(evaluation.setup.images),
        execution.batch_size,
        evaluation.attack.plugin.unit(evaluation.stochastic),
    )
