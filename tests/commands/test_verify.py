"""`bench verify`: a record comes out again, and tampering shows."""

import json
import os
import subprocess
import sys

import pytest

import bench
from bench.commands.verify import verify
from bench.engine.execution import Execution
from bench.engine.run import run_evaluation
from bench.results.store import Store
from tests.helpers import ROOT, Drifting, drifting_evaluation, run_toys


def test_a_replayed_verdict_comes_out_of_its_record(tmp_path):
    """In a new process: re-scored from the points, and re-run without them."""
    record = run_toys(tmp_path)[-1]
    assert record.outcomes.replayed
    path = tmp_path / f"{record.stem}.json"
    code = (
        "import sys, tests.toy_plugins\nfrom bench.cli import main\n"
        "main(['verify', sys.argv[1], '--device', 'cpu', '--batch-size', '128'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for remove in (False, True):
        if remove:
            (tmp_path / record.points.file).unlink()
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "replayed" in done.stdout
        assert ("re-running" in done.stdout) == remove


def test_verify_notices_tampering(tmp_path):
    record = run_toys(tmp_path)[-1]
    path = tmp_path / f"{record.stem}.json"
    clean = path.read_text()
    tampered = json.loads(clean)
    word = tampered["outcomes"]["replayed"][0]
    tampered["outcomes"]["replayed"][0] = word[::-1] if word != word[::-1] else "0" * len(word)
    path.write_text(json.dumps(tampered))
    held = {check.name: check.held for check in verify(path, Execution())}
    assert not held["metrics"] and not held["replayed"] and held["adversarial"] and held["setup"]
    for key, value in (("labels", tampered["outcomes"]["adversarial"][0]), ("ids", "1000-1149")):
        forged = json.loads(clean)
        forged["outcomes"][key] = value
        path.write_text(json.dumps(forged))
        assert not {check.name: check.held for check in verify(path, Execution())}["setup"], key
    path.write_text(clean)
    assert all(check.held for check in verify(path, Execution()))
    (tmp_path / record.points.file).write_bytes(b"other")
    with pytest.raises(bench.BadInput, match="SHA-256"):
        verify(path, Execution())
    tampered = json.loads(clean)
    tampered["id"] = "0" * 16
    path.write_text(json.dumps(tampered))
    with pytest.raises(bench.BadInput):
        verify(path, Execution())


def test_verify_tells_another_build_from_wrong_predictions(tmp_path, monkeypatch):
    drifting = drifting_evaluation()
    record = run_evaluation(drifting, Store(tmp_path), Execution())
    monkeypatch.setattr("bench.commands.verify.rebuild", lambda _: drifting)
    path = tmp_path / f"{record.stem}.json"
    assert all(check.held for check in verify(path, Execution()))
    monkeypatch.setattr(Drifting, "factor", 2.0)
    assert [check.name for check in verify(path, Execution()) if not check.held] == ["weights"]
