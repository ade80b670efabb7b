"""`bench verify`: a record comes out again, and tampering shows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench.commands.verify import attacked, drawn, verify
from bench.engine.execution import Execution
from bench.engine.run import run_evaluation
from bench.engine.searching import quick_form
from bench.errors import BadInput
from bench.results.store import Store, read_record
from tests.helpers import ROOT, Drifting, call, drifting_evaluation, run_toys


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


def without_points(folder: Path, compile: str) -> Path:
    """A record of a search that was computed so, which lost its points."""
    record = bench.evaluate(
        defenses="undefended",
        attacks="pgd:steps=3",
        dataset="mnist5k",
        n=8,
        eps=0.05,
        device="cpu",
        compile=compile,
        out=folder,
    ).records[0]
    (folder / record.points.file).unlink()
    return folder / f"{record.stem}.json"


@pytest.mark.parametrize("word", ["auto", "on", "off"])
def test_a_search_is_repeated_as_it_was_computed(word, tmp_path, monkeypatch):
    path = without_points(tmp_path, word)
    asked = []

    def spy(evaluation, defended, execution):
        asked.append(execution.compile)
        return quick_form(evaluation, defended, execution)

    monkeypatch.setattr("bench.engine.run.quick_form", spy)
    checks = verify(path, Execution(compile="off"))
    assert asked == [word] and all(check.held for check in checks)


@pytest.mark.parametrize(
    ("word", "more", "holds"), [("auto", 1, True), ("auto", 9, False), ("off", 1, False)]
)
def test_passes_may_differ_a_little_where_a_search_was_folded(word, more, holds, tmp_path):
    path = without_points(tmp_path, word)
    told = json.loads(path.read_text())
    told["cost"]["attack_forwards"] += more / 4
    told["cost"]["max_attack_forwards"] += more
    path.write_text(json.dumps(told))
    assert {one.name: one.held for one in verify(path, Execution())}["cost"] == holds


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
        if key == "ids":
            forged["extra"][0]["ids"] = value
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
    # An audit would be one of another network.
    with pytest.raises(bench.BadInput, match="other weights"):
        attacked(record, drifting, path, Execution().device)


def foreign(tmp_path, key, text):
    """A record that names code, with that name in one of its specs."""
    record = run_toys(tmp_path, attacks=("null",), dataset="toy:n=20")[-1]
    path = tmp_path / f"{record.stem}.json"
    content = json.loads(path.read_text())
    content["sources" if key in ("dataset", "classifier") else "title"][key] = text
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("key", ["defense", "attack", "dataset", "classifier"])
@pytest.mark.parametrize(
    "form", ["{}@Evil", "ensemble:members=({}@Evil:x=1)+tte", 'a:"x@y",b={}@E']
)
def test_code_outside_the_current_folder_is_not_run(tmp_path, capsys, monkeypatch, key, form):
    evil, here = tmp_path / "evil.py", tmp_path / "here"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    here.mkdir()
    path = foreign(tmp_path, key, form.format(evil))
    monkeypatch.chdir(here)
    (here / "link.py").symlink_to(evil)
    code, _, told = call(capsys, "verify", str(path))
    assert code == 2 and "--trust" in told and told.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    path = foreign(tmp_path / "second", key, form.format("link.py"))
    assert call(capsys, "verify", str(path))[0] == 2 and not (tmp_path / "ran").exists()


def test_trusted_code_is_run(tmp_path, capsys):
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = foreign(tmp_path, "defense", f"{evil}@Evil")
    assert call(capsys, "verify", str(path), "--trust")[0] == 2 and (tmp_path / "ran").exists()


def test_a_folder_is_verified_record_by_record(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    run_toys(tmp_path, attacks=("null",), dataset="toy:n=20")
    code, out, _ = call(capsys, "verify", str(tmp_path), "--device", "cpu")
    assert code == 0 and out.count("setup: same images") == 2
    (tmp_path / "a--b.json").write_text("{}")
    code, out, told = call(capsys, "verify", str(tmp_path), "--device", "cpu")
    assert code == 2 and out.count("setup: same images") == 2 and "is no record" in told


@pytest.mark.parametrize(
    ("field", "value"),
    [("access", ["training data"]), ("base", "0" * 16), ("stochastic", False), ("findings", None)],
)
def test_each_derived_field_is_named(tmp_path, field, value):
    record = run_toys(tmp_path, dataset="toy:n=40")[-1]
    path = tmp_path / f"{record.stem}.json"
    content = json.loads(path.read_text())
    invented = [{"name": "zero-gradient", "verdict": "warn", "message": "none"}]
    content[field] = invented if field == "findings" else value
    path.write_text(json.dumps(content))
    wrong = [check.message for check in verify(path, Execution()) if not check.held]
    assert len(wrong) == 1 and field in wrong[0]


def test_a_sample_is_drawn_by_names_and_seed():
    paths = [Path("a") / f"{i}.json" for i in range(50)]
    assert drawn(paths, None, 0) == paths
    one, other = drawn(paths, 20, 0), drawn(paths, 20, 1)
    assert len(set(one)) == len(set(other)) == 20 and one != other
    assert one == sorted(one, key=paths.index) == drawn(paths, 20, 0)
    elsewhere = [Path("b/c") / path.name for path in reversed(paths)]
    assert {path.name for path in drawn(elsewhere, 20, 0)} == {path.name for path in one}
    assert set(drawn(paths, 19, 0)) < set(one)
    # Each record is drawn with the same chance: 20 of 50, in 200 draws.
    counts = [sum(path in drawn(paths, 20, seed) for seed in range(200)) for path in paths]
    assert sum(counts) == 4000 and min(counts) > 50 and max(counts) < 110
    for wrong in (0, -1, 51):
        with pytest.raises(BadInput, match="give 1 to 50"):
            drawn(paths, wrong, 0)


def test_a_row_that_failed_by_its_bases_points_is_run_again_without_them(tmp_path, capsys):
    """Mutation: such a row is probed where the base's points are not there."""
    made, bare = tmp_path / "made", tmp_path / "bare"
    asked = ["--defense", "bit-depth", "--attack", "pgd:steps=5", "--eps", "0.2", "--n", "64"]
    assert call(capsys, "run", *asked, "--out", str(made), "--workers", "1")[0] == 0
    (path,) = made.glob("*bit-depth*.json")
    record = read_record(path)
    assert [one.verdict for one in record.findings if one.name == "base-points"] == ["fail"]
    bare.mkdir()
    (bare / path.name).write_bytes(path.read_bytes())
    code, stdout, _ = call(capsys, "verify", str(bare / path.name))
    assert code == 0 and "FAIL" not in stdout, stdout
