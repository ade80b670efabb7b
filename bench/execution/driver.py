"""The driver of workers that reach no folder of ours: it answers their messages, and writes.

What a worker claimed is claimed by the driver, and free again when the worker is gone.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.engine.compute import report_begun, report_shard
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.engine.run import Result
from bench.engine.shards import read_arrays, shard_of
from bench.errors import BadInput
from bench.execution.remote import message, read_message
from bench.results.record import Failure, Record
from bench.results.store import Store, read_failure, to_json
from bench.storage.files import found
from bench.storage.place import Held, Place


class Crew(ABC):
    """Workers somewhere else, each of which says one message after another."""

    @abstractmethod
    def start(self) -> int:
        """Add a worker; returns its number."""

    @abstractmethod
    def wait(self, seconds: float) -> list[tuple[int, bytes | str]]:
        """What workers said meanwhile, and why one is gone, as text."""

    @abstractmethod
    def send(self, worker: int, answer: bytes) -> None:
        """Answer what it said last."""

    @abstractmethod
    def stop(self, worker: int) -> None:
        """End it, whatever it does."""


@dataclass
class Driver:
    """Has a crew compute evaluations.

    Attributes:
        evaluations: what is to be computed; the workers plan the same ones.
        store: the folder of records.
        execution: whom to tell of progress.
        crew: the workers.
        note: called with what a user should know, one line each.
    """

    evaluations: Sequence[Evaluation]
    store: Store
    execution: Execution
    crew: Crew
    note: Callable[[str], None]
    _served: dict[int, Served] = field(default_factory=dict)
    _rejected: dict[str, str] = field(default_factory=dict)
    _lost: int = 0

    def __post_init__(self) -> None:
        self._told = Told(self.evaluations, self.execution)

    def run(self, size: int) -> list[Result]:
        """The results, in the order of the evaluations.

        Args:
            size: how many workers; one that is lost is replaced.

        Raises:
            BadInput: where no worker can do the job, or they die one after the other.
        """
        stored = {one.id for one in self.evaluations if self.store.find(one.id)}
        if len(stored) < len(self.evaluations):
            try:
                self._drive(size)
            finally:
                for worker, served in self._served.items():
                    served.close()
                    self.crew.stop(worker)
                self.store.sweep(one.id for one in self.evaluations)
        results = (
            result_of(one, self.store, self._rejected.get(one.id), one.id not in stored)
            for one in self.evaluations
        )
        return [result for result in results if result]

    def _drive(self, size: int) -> None:
        for _ in range(size):
            self._start()
        problem = ""
        while self._served:
            for worker, said in self.crew.wait(1.0):
                if isinstance(said, str):
                    self._replace(worker, said, size)
                    continue
                (word, *words), _ = read_message(said)
                if word == "end":
                    return
                if word == "failed":
                    problem = str(words[0])
                    self._leave(worker)
                    self.note(f"a worker gave up ({problem}): the others do its work")
                else:
                    self.crew.send(worker, self._served[worker].answer(said))
        raise BadInput(f"no worker could do the job ({problem}): correct that, or run it here")

    def _start(self) -> None:
        self._served[self.crew.start()] = Served(
            self.store, self._saved, self._told.begun, self._reject
        )

    def _leave(self, worker: int) -> None:
        self._served.pop(worker).close()
        self.crew.stop(worker)

    def _replace(self, worker: int, why: str, size: int) -> None:
        """Put another one in the place of a worker that is gone."""
        self._leave(worker)
        self._lost += 1
        if self._lost > 3 * size:
            raise BadInput(
                f"{self._lost} workers ended one after the other ({why}), and no shard was "
                "finished meanwhile: give them more memory, or a smaller --batch-size"
            )
        self._start()

    def _reject(self, evaluation: str, why: str) -> None:
        self._rejected[evaluation] = why

    def _saved(self, folder: str, name: str, data: bytes) -> None:
        self._lost = 0
        self._told.saved(folder, name, data)


class Told:
    """Tells the progress callback what workers somewhere else have finished, each shard once.

    Args:
        evaluations: what they work on.
        execution: holds the callback.
    """

    def __init__(self, evaluations: Sequence[Evaluation], execution: Execution) -> None:
        self._evaluations = {one.id: one for one in evaluations}
        self._execution = execution
        self._seen = set[tuple[str, str]]()
        self._images = dict[str, int]()

    def begun(self, folder: str) -> None:
        """Work on a shard begins; its folder is `EVALUATION/NAME`."""
        evaluation = self._known(folder)
        if evaluation:
            report_begun(self._execution, evaluation)

    def saved(self, folder: str, name: str, data: bytes) -> None:
        """A file of unfinished work is there."""
        evaluation, shard = self._known(folder), shard_of(name)
        if evaluation is None or shard is None or (evaluation.id, name) in self._seen:
            return
        self._seen.add((evaluation.id, name))
        self._images[evaluation.id] = self._images.get(evaluation.id, 0) + shard[1] - shard[0]
        report_shard(self._execution, evaluation, shard, read_arrays(data))

    def look(self, store: Store) -> None:
        """Tell what a folder holds by now, finished evaluations included."""
        for one in self._evaluations.values():
            total = len(one.setup.images)
            if self._images.get(one.id, 0) == total:
                continue
            for path in sorted(found(store.work(one.id), "*/shard-*.npz")):
                # It may be gone by now, with the evaluation.
                with contextlib.suppress(OSError):
                    self.saved(f"{one.id}/{path.parent.name}", path.name, path.read_bytes())
            record = None if store.work(one.id).exists() else store.find(one.id)
            rest = total - self._images.get(one.id, 0)
            if record and rest and self._execution.progress:
                self._images[one.id] = total
                right = record.metrics.adversarial.mean.value
                self._execution.progress(one, rest, total, right)

    def _known(self, folder: str) -> Evaluation | None:
        """The evaluation whose shards lie in a folder; None for a folder of probes."""
        name, *rest = Path(folder).parts
        return self._evaluations.get(name) if len(rest) == 1 else None


def result_of(
    evaluation: Evaluation, store: Store, rejected: str | None, computed: bool
) -> Result | None:
    """What became of an evaluation that others computed; None for a base that nobody needed.

    Args:
        evaluation, store: where its record lies, or its failure.
        rejected: why it cannot be, where somebody found that.
        computed: whether its record was made just now.
    """
    record = store.find(evaluation.id)
    if record is not None:
        path = store.folder / f"{record.stem}.json"
        return Result(evaluation, record, path=path, computed=computed)
    if rejected is not None:
        return Result(evaluation, rejected=BadInput(rejected))
    for path in store.folder.glob(f"*--{evaluation.id}.error.json"):
        return Result(evaluation, failure=read_failure(path), path=path)
    return None


class Served:
    """What the driver keeps for one worker.

    Args:
        store: the folder of records.
        saved: called for each file of unfinished work that the worker wrote or read: its folder,
            its name and its content.
        begun: called when it begins with one: its folder.
        rejected: called with an evaluation that cannot be, and why.
    """

    def __init__(
        self,
        store: Store,
        saved: Callable[[str, str, bytes], None],
        begun: Callable[[str], None],
        rejected: Callable[[str, str], None],
    ) -> None:
        self._store, self._saved, self._begun, self._rejected = store, saved, begun, rejected
        self._claims = dict[tuple[str, str], tuple[Held, contextlib.ExitStack]]()
        self._deeds: dict[str, Callable[..., bytes | bool | str]] = {
            "read": self._do_read,
            "holds": self._do_holds,
            "write": self._do_write,
            "claim": self._do_claim,
            "held": self._do_held,
            "release": self._do_release,
            "find": self._do_find,
            "file": self._do_file,
            "record": self._do_record,
            "failure": self._do_failure,
            "points": self._do_points,
            "begin": self._do_begin,
            "clear": self._do_clear,
            "rejected": self._do_rejected,
        }

    def close(self) -> None:
        """The worker is gone: give up what it had claimed."""
        for key in list(self._claims):
            self._release(*key)

    def answer(self, text: bytes) -> bytes:
        """Do what the worker asks for."""
        (word, *words), data = read_message(text)
        answer = self._deeds[word](*words, data)
        return answer if isinstance(answer, bytes) else message(answer)

    def _place(self, folder: str) -> Place:
        evaluation, name, *rest = _inside(folder).parts
        place = self._store.place(evaluation, name)
        for part in rest:
            place = place.within(part)
        return place

    def _do_read(self, folder: str, name: str, _: bytes) -> bytes:
        try:
            data = self._place(folder).read(_plain(name))
        except FileNotFoundError:
            return message(False)
        self._saved(folder, name, data)
        return message(True, data=data)

    def _do_holds(self, folder: str, name: str, _: bytes) -> bool:
        return self._place(folder).holds(_plain(name))

    def _do_write(self, folder: str, name: str, data: bytes) -> bool:
        self._place(folder).write(_plain(name), data)
        self._saved(folder, name, data)
        return True

    def _do_claim(self, folder: str, name: str, _: bytes) -> bool:
        with contextlib.ExitStack() as stack:
            claim = stack.enter_context(self._place(folder).claim(_plain(name)))
            if claim is None:
                return False
            self._claims[folder, name] = claim, stack.pop_all()
        self._begun(folder)
        return True

    def _do_held(self, folder: str, name: str, _: bytes) -> bool:
        held = self._claims.get((folder, name))
        return held is not None and held[0].held()

    def _do_release(self, folder: str, name: str, _: bytes) -> bool:
        self._release(folder, name)
        return True

    def _release(self, folder: str, name: str) -> None:
        held = self._claims.pop((folder, name), None)
        if held is not None:
            held[1].close()

    def _do_find(self, evaluation: str, _: bytes) -> bytes:
        record = self._store.find(_plain(evaluation))
        if record is None:
            return message(False)
        return message(True, data=to_json(record))

    def _do_file(self, name: str, _: bytes) -> bytes:
        try:
            return message(True, data=self._store.read(_plain(name)))
        except OSError:
            return message(False)

    def _do_record(self, data: bytes) -> bool:
        self._store.save(Record.model_validate_json(data, strict=True))
        return True

    def _do_failure(self, data: bytes) -> str:
        return self._store.save_failure(Failure.model_validate_json(data, strict=True)).name

    def _do_points(self, name: str, evaluation: str, data: bytes) -> bool:
        self._store.write(_plain(name), data, _plain(evaluation))
        return True

    def _do_begin(self, evaluation: str, _: bytes) -> bool:
        return self._store.begin(_plain(evaluation))

    def _do_clear(self, evaluation: str, shards: bool, _: bytes) -> bool:
        self._store.clear(_plain(evaluation), shards=shards)
        return True

    def _do_rejected(self, evaluation: str, why: str, _: bytes) -> bool:
        self._rejected(evaluation, why)
        return True


def _plain(name: str) -> str:
    """A name of one file. Raises `ValueError` for anything else: it would lie elsewhere."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"{name!r} is no file's name")
    return name


def _inside(folder: str) -> Path:
    path = Path(folder)
    if not 2 <= len(path.parts) <= 3:
        raise ValueError(f"{folder!r} is no folder of an evaluation")
    for part in path.parts:
        _plain(part)
    return path
