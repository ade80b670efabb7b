"""Evaluations from end to end on toys: the same outcome however they are run, resumed, failed."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import bench.engine.compute
import bench.storage.place
from bench.cli import execute
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import run_evaluation, run_evaluations, shards_for
from bench.engine.shards import shards_of
from bench.errors import BadInput
from bench.report.boards.make import boards
from bench.report.boards.markdown import page
from bench.results.store import Store, read_folder
from tests.helpers import MODEL, ROOT, Drifting, call, drifting_evaluation, run_toys, toy_request


@pytest.mark.parametrize(
    "attack",
    ["pgd:steps=5", "pgd+eot:randomness=(eot:k=3),steps=5", "pgd+replay:steps=5", "noise:tries=3"],
)
def test_outcomes_do_not_depend_on_batch_size_or_order(tmp_path, attack):
    backwards = list(reversed(shards_of(150, 7)))
    runs = {
        "one": run_toys(tmp_path / "1", 1, attacks=(attack,)),
        "seven": run_toys(tmp_path / "7", 7, attacks=(attack,)),
        "sixty-four": run_toys(tmp_path / "64", 64, attacks=(attack,)),
        "backwards": run_toys(tmp_path / "b", 7, shards=backwards, attacks=(attack,)),
    }
    for name, records in runs.items():
        for record, reference in zip(records, runs["seven"], strict=True):
            assert record.id == reference.id
            assert record.outcomes == reference.outcomes, name
            assert record.metrics == reference.metrics
    assert all(
        r.points.sha256 == s.points.sha256
        for r, s in zip(runs["backwards"], runs["seven"], strict=True)
    )


@pytest.mark.parametrize(
    ("defense", "attack", "eps"),
    [
        ("undefended", "pgd", 0.05),
        ("bit-depth", "bpda", 0.12),
        ("random-resize", "pgd", 0.05),
        ("random-resize", "pgd+replay", 0.03),
    ],
)
def test_a_real_net_gives_the_same_outcomes_at_any_batch_size(tmp_path, defense, attack, eps):
    """Floating-point sums differ by batch; outcomes do not, and at most 2 % of the points do."""
    (evaluation,) = plan(Request(defenses=(defense,), attacks=(attack,), eps=eps, n=50))[-1:]
    found = {}
    for size in (1, 7, 64):
        record = run_evaluation(evaluation, Store(tmp_path / str(size)), Execution(batch_size=size))
        found[size] = (
            record.outcomes,
            load_file(tmp_path / str(size) / record.points.file)["points"],
        )
    assert 0.05 < record.metrics.adversarial.mean.value < 0.95, (
        "a verdict that is all one tells nothing"
    )
    for size in (1, 7):
        assert found[size][0] == found[64][0]
        assert (found[size][1] == found[64][1]).all((1, 2, 3)).mean() >= 0.95


def command(out: Path, at: int) -> list[str]:
    return [
        *("run", "--defense", "undefended", "--attack", f"toy-kill:at={at}"),
        *("--dataset", "toy:n=150", "--classifier", MODEL, "--out", str(out)),
        *("--device", "cpu", "--batch-size", "64"),
    ]


def start(out: Path) -> subprocess.Popen:
    code = f"import tests.toy_plugins; from bench.cli import main; main({command(out, 0)})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, stderr=subprocess.PIPE
    )


def killable(out: Path, at: int, *, kill: bool = False) -> int:
    """Exit code of the command in a copy of this process, which has torch already."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 99
        try:
            if kill:
                os.environ["TOY_KILL"] = "1"
            code = execute(command(out, at))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def record_in(folder: Path) -> dict:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


def test_two_workers_share_an_evaluation(tmp_path):
    """Two processes start the same command at once: one record, as one process alone would
    make it.
    """
    commands = [start(tmp_path / "both") for _ in range(2)]
    said = [process.communicate()[1] for process in commands]
    assert [process.returncode for process in commands] == [0, 0], said
    one = record_in(tmp_path / "both")
    assert not list((tmp_path / "both" / ".work").glob("*/*"))
    assert killable(tmp_path / "alone", 0) == 0
    alone = record_in(tmp_path / "alone")
    assert (
        alone["outcomes"] == one["outcomes"]
        and alone["points"]["sha256"] == one["points"]["sha256"]
    )


def test_a_random_defense_has_smaller_shards_than_its_base():
    sizes = {
        evaluation.stochastic: [end - start for start, end in shards_for(evaluation, Execution())]
        for evaluation in plan(toy_request(dataset="toy:n=64"))
    }
    assert sizes == {False: [64], True: [32, 32]}


@pytest.mark.parametrize("at", [0, 70, 149])
def test_a_killed_run_resumes(tmp_path, at):
    assert killable(tmp_path / "a", at, kill=True) == -9
    assert not list((tmp_path / "a").glob("*.json")), "a killed run leaves no record"
    saved = sorted((tmp_path / "a" / ".work").rglob("shard-*"))
    assert len(saved) == sum(end <= at for _, end in shards_of(150, 7))
    assert killable(tmp_path / "a", at) == 0 and killable(tmp_path / "b", at) == 0
    one, two = record_in(tmp_path / "a"), record_in(tmp_path / "b")
    assert one["outcomes"] == two["outcomes"]
    assert one["points"]["sha256"] == two["points"]["sha256"]
    assert killable(tmp_path / "a", at) == 0
    assert record_in(tmp_path / "a")["finished"] == one["finished"]


def test_a_stored_evaluation_is_not_computed_again(tmp_path):
    evaluations = plan(toy_request())
    first = list(run_evaluations(evaluations, Store(tmp_path), Execution()))
    second = list(run_evaluations(evaluations, Store(tmp_path), Execution()))
    assert [r.computed for r in first] == [True, True]
    assert [r.computed for r in second] == [False, False]
    assert [r.record for r in first] == [r.record for r in second]


def test_a_crash_is_an_error_and_takes_nothing_down(tmp_path):
    evaluations = plan(toy_request(defenses=("toy-crash", "toy-jitter"), attacks=("pgd:steps=3",)))
    results = {
        r.evaluation.defense.name: r
        for r in run_evaluations(evaluations, Store(tmp_path), Execution())
    }
    assert results["toy-jitter"].record and results["undefended"].record
    assert results["toy-crash"].record is None
    assert "crashes on larger batches" in results["toy-crash"].failure.error
    found = list(read_folder(tmp_path))
    failures = [f for f in found if hasattr(f, "traceback")]
    assert len(found) == 3 and len(failures) == 1
    text = page(boards([f for f in found if not hasattr(f, "traceback")]), failures)
    assert "toy-crash x pgd:steps=3 on toy:n=150, linf 0.05, n=150: error" in text


def test_a_worker_that_loses_the_race_is_no_failure(tmp_path, monkeypatch):
    """Another process stores the record and drops the work folder while this one is about
    to claim.
    """
    evaluation = plan(toy_request(attacks=("null",)))[-1]
    store = Store(tmp_path)
    right = bench.storage.place.claimed

    def lose(folder):
        monkeypatch.setattr(bench.storage.place, "claimed", right)
        run_evaluation(evaluation, store, Execution())
        return right(folder)

    monkeypatch.setattr(bench.storage.place, "claimed", lose)
    (result,) = run_evaluations([evaluation], store, Execution())
    assert result.record is not None and result.failure is None
    assert not list(tmp_path.glob("*.error.json"))


def test_shards_of_another_build_are_not_taken_for_this_one(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    drifting = drifting_evaluation()
    store, options = Store(tmp_path), Execution(batch_size=64)
    with monkeypatch.context() as patch:
        patch.setattr(bench.engine.compute.ShardComputer, "report", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_evaluation(drifting, store, options)
    monkeypatch.setattr(Drifting, "factor", -1.0)
    record = run_evaluation(drifting, store, options)
    assert not record.outcomes.correct("clean").any(), "the first shard is that of the build before"
    assert not list((tmp_path / ".work").iterdir())


def test_a_record_of_another_schema_is_not_overwritten(tmp_path, capsys):
    record = run_toys(tmp_path, attacks=("null",), dataset="toy:n=20")[-1]
    path = tmp_path / f"{record.stem}.json"
    later = path.read_text().replace('"schema_version": 2', '"schema_version": 99')
    path.write_text(later)
    evaluations = plan(toy_request(attacks=("null",), dataset="toy:n=20"))
    with pytest.raises(BadInput, match="neither reads nor overwrites"):
        list(run_evaluations(evaluations, Store(tmp_path), Execution()))
    assert path.read_text() == later


@pytest.mark.parametrize("defense", ["undefended", "toy-crash"])
def test_a_full_disk_is_told_in_one_line_and_loses_nothing(tmp_path, capsys, monkeypatch, defense):
    arguments = ["run", "--defense", defense, "--attack", "null", "--dataset", "toy:n=20"]
    arguments += ["--classifier", MODEL, "--device", "cpu", "--out", str(tmp_path / "out")]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bench.storage.files.os.replace", full)
        code, out, told = call(capsys, *arguments)
    lines = [line for line in told.splitlines() if "ETA" not in line]
    assert code == 2 and out == "" and len(lines) == 1, told
    assert "free some space" in lines[0]
    assert not list((tmp_path / "out").glob("*.json"))
    code, _, _ = call(capsys, *arguments)
    assert code == (1 if defense == "toy-crash" else 0)
