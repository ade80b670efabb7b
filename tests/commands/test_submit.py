"""`bench submit`: what is packed verifies and joins; what nobody else could repeat is refused."""

import copy
import json
import os
import shutil
import subprocess

import pytest
import safetensors.torch
import torch

from bench.commands.submit import submit
from bench.commands.verify import rebuild
from bench.defense import Defense
from bench.engine import trained
from bench.engine.build import build
from bench.engine.fingerprint import weights_sha256
from bench.errors import BadInput
from bench.plugins.create import DEFENSES
from bench.results.store import read_record
from bench.results.weights import file_of_weights
from bench.storage.artifacts import artifact
from tests.helpers import MODEL, call, refused, run_toys


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A base and a row, as from a committed tree."""
    folder = tmp_path_factory.mktemp("ran")
    run_toys(folder, attacks=("null",), dataset="toy:n=64")
    for path in folder.glob("*--*.json"):
        change(path, environment={"dirty": False, "commit": "a" * 40})
    return folder


@pytest.fixture
def made(ran, tmp_path):
    shutil.copytree(ran, tmp_path / "made")
    return tmp_path / "made"


def change(path, **parts):
    content = json.loads(path.read_bytes())
    for name, fields in parts.items():
        content[name] |= fields
    path.write_text(json.dumps(content))


def row(folder):
    (path,) = folder.glob("*toy-jitter*.json")
    return path


def test_what_is_packed_verifies_and_joins(made, tmp_path, capsys):
    out = tmp_path / "out"
    code, stdout, told = call(capsys, "submit", str(row(made)), "--out", str(out))
    assert code == 0 and "2 records, 2 with points" in stdout, "the base comes along"
    assert "1 of 2 records are not audited" in told
    page = (out / "SUBMISSION.md").read_text()
    assert "bench run --defense toy-jitter --attack null" in page and "commit aaaaaaaaaaaa" in page
    assert read_record(row(out)).points.sha256[:16] in page
    assert f"the code in {MODEL.partition('@')[0]} is not packed" in page
    code, stdout, _ = call(capsys, "verify", str(out), "--trust")
    assert code == 0 and "re-scoring the stored points" in stdout and "FAIL" not in stdout
    assert call(capsys, "merge", str(out), "--out", str(tmp_path / "all"))[0] == 0
    assert {path.name for path in (tmp_path / "all").glob("*--*")} == {
        path.name for path in made.glob("*--*")
    }


def test_missing_points_are_told_and_nothing_is_overwritten(made, tmp_path):
    for points in made.glob("*.safetensors"):
        points.unlink()
    done = submit([row(made)], tmp_path / "out")
    assert done.points == 0 and "2 of 2 records come without points" in done.notes[0]
    assert "(not packed)" in (tmp_path / "out" / "SUBMISSION.md").read_text()
    with pytest.raises(BadInput, match="no empty folder"):
        submit([row(made)], tmp_path / "out")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"environment": {"dirty": True}}, "uncommitted changes"),
        ({"sources": {"dataset": "python:arrays"}}, "from a Python object"),
    ],
)
def test_what_nobody_else_has_is_refused_and_nothing_written(made, tmp_path, parts, said):
    change(row(made), **parts)
    with pytest.raises(BadInput, match=said):
        submit(sorted(made.glob("*--*.json")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


STUB = '#!/bin/bash\npwd -P >> "$PLACES"; echo "$@" >> "$CALLS"; [ "$1" != "$FAILS" ]\n'


def test_a_new_board_checks_what_is_handed_in_from_elsewhere(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "new", "board", "my-board")[0] == 0
    board = tmp_path / "my-board"
    handed = board / "submissions" / "mine"
    handed.mkdir()
    (board / "records" / "a--b.json").write_text("{}")
    (tmp_path / "bench").write_text(STUB)
    (tmp_path / "bench").chmod(0o755)
    assert check(board, tmp_path) == 0
    called = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert called == ["submit", "verify", "merge", "leaderboard", "leaderboard"]
    assert f"verify {handed}/" in (tmp_path / "calls").read_text()
    places = set((tmp_path / "places").read_text().split())
    assert len(places) == 1 and not places.pop().startswith(str(tmp_path)), "no code of theirs"
    for fails in ("submit", "verify", "merge", "leaderboard"):
        assert check(board, tmp_path, fails) == 1


def check(board, folder, fails=""):
    names = {"PLACES": str(folder / "places"), "CALLS": str(folder / "calls"), "FAILS": fails}
    path = f"{folder}:{os.environ['PATH']}"
    environment = {**os.environ, **names, "PATH": path, "TMPDIR": "/tmp"}
    done = subprocess.run(["bash", board / "check.sh"], env=environment, capture_output=True)
    return done.returncode


@DEFENSES.register("toy-student")
class Student(Defense):
    """The classifier with doubled weights, kept as an artifact."""

    factor = 2

    def build(self, classifier, access, noise):
        def make(folder):
            doubled = {key: self.factor * value for key, value in classifier.state_dict().items()}
            (folder / "w.safetensors").write_bytes(safetensors.torch.save(doubled))

        folder = artifact("toy-students", {"version": 1}, make)
        classifier.load_state_dict(safetensors.torch.load_file(folder / "w.safetensors"))
        return classifier


def changed(weights):
    """The weights of another network, under the same name."""
    state = safetensors.torch.load(weights.read_bytes())
    other = {key: value + (value.dtype == torch.float32) for key, value in state.items()}
    weights.write_bytes(safetensors.torch.save(other, {"notes": "[]"}))


def test_weights_of_a_trained_defense_are_verified_without_training(tmp_path, capsys, monkeypatch):
    made, out, joined = tmp_path / "made", tmp_path / "out", tmp_path / "joined"
    run_toys(made, defenses=("toy-student",), attacks=("null",), dataset="toy:n=64")
    for path in made.glob("*--*.json"):
        change(path, environment={"dirty": False, "commit": "a" * 40})
    code, _, told = call(capsys, "submit", str(made), "--out", str(out), "--weights")
    assert code == 0 and "the weights of 1 trained defenses are packed" in told
    (record,) = out.glob("*toy-student*.json")
    weights = out / file_of_weights(read_record(record))
    assert [path.name for path in (out / "weights").iterdir()] == [weights.name]
    assert call(capsys, "merge", str(out), "--out", str(joined))[0] == 0
    assert (joined / "weights" / weights.name).read_bytes() == weights.read_bytes()

    # Who has it in the cache needs none; who has not reads them, and makes nothing.
    code, stdout, _ = call(capsys, "verify", str(record), "--trust")
    assert code == 0 and "not trained anew" not in stdout
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "empty"))
    code, stdout, _ = call(capsys, "verify", str(record), "--trust")
    assert code == 0 and "not trained anew" in stdout
    assert not (tmp_path / "empty").exists()

    changed(weights)
    code, _, told = call(capsys, "verify", str(record), "--trust")
    assert code != 0 and "other weights than the record names" in told
    for wrong in (b"x", safetensors.torch.save({"a": torch.zeros(2)})):
        weights.write_bytes(wrong)
        code, _, told = call(capsys, "verify", str(record), "--trust")
        assert code != 0 and "weights" in told and "trained anew" in told


def test_weights_beside_a_record_stand_for_no_defense_that_is_not_trained(made, capsys):
    """A forger names the weights of a better network, and hands them in."""
    (path,) = made.glob("*undefended*.json")
    record = read_record(path)
    weights = path.parent / file_of_weights(record)
    weights.parent.mkdir()
    classifier = rebuild(record).setup.classifier
    better = {key: 3 * value.clone() for key, value in classifier.state_dict().items()}
    copied = copy.deepcopy(classifier)
    copied.load_state_dict(better)
    change(path, environment={"weights": weights_sha256(copied)})
    forged = path.parent / file_of_weights(read_record(path))
    forged.write_bytes(safetensors.torch.save(better, {"notes": "[]"}))
    code, stdout, _ = call(capsys, "verify", str(path), "--trust")
    assert code == 1 and "FAIL  weights" in stdout and "not trained anew" not in stdout


def test_a_defense_that_is_no_classifier_with_other_weights_is_not_packed(made, tmp_path, capsys):
    code, _, told = call(capsys, "submit", str(made), "--out", str(tmp_path / "out"), "--weights")
    assert code == 0 and "the weights of 0 trained defenses" in told
    assert not (tmp_path / "out" / "weights").exists()


def test_a_cache_with_another_training_does_not_stand_for_the_weights_beside(
    tmp_path, capsys, monkeypatch
):
    """Training came out otherwise here, on another processor, and lies in the cache."""
    (record,) = packed(tmp_path, capsys).glob("*toy-student*.json")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Student, "factor", 3)
    evaluation = rebuild(read_record(record))
    other = build(evaluation, torch.device("cpu"))
    assert weights_sha256(other) != read_record(record).environment["weights"]
    code, stdout, _ = call(capsys, "verify", str(record), "--trust")
    assert code == 0 and "not trained anew" in stdout


def packed(tmp_path, capsys):
    """A row of a trained defense with its weights beside it, as somebody publishes it."""
    made, out = tmp_path / "made", tmp_path / "published"
    run_toys(made, defenses=("toy-student",), attacks=("null",), dataset="toy:n=64")
    for path in made.glob("*--*.json"):
        change(path, environment={"dirty": False, "commit": "a" * 40})
    assert call(capsys, "submit", str(made), "--out", str(out), "--weights")[0] == 0
    return out


def attack(published, out, *more, defense="toy-student"):
    setup = ("--dataset", "toy:n=60", "--classifier", MODEL, "--attack", "pgd:steps=2")
    return "run", "--defense", defense, *setup, "--weights", published, "--out", out, *more


def test_a_published_row_is_attacked_anew_without_training(tmp_path, capsys, monkeypatch):
    published, out = packed(tmp_path, capsys), tmp_path / "out"
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "empty"))
    code, _, told = call(capsys, *map(str, attack(published, out)))
    assert code == 0 and f"read from {published}, not trained: toy-student" in told
    assert not (tmp_path / "empty").exists(), "something was made"
    (theirs,), (path,) = published.glob("*toy-student*.json"), out.glob("*toy-student*.json")
    ours = read_record(path)
    assert ours.environment["weights"] == read_record(theirs).environment["weights"]
    assert ours.environment["weights_read"] is True
    (base,) = out.glob("*undefended*.json")
    assert "weights_read" not in read_record(base).environment
    # They lie beside the new row as well: whoever verifies it does not train.
    code, stdout, _ = call(capsys, "verify", str(path), "--trust")
    assert code == 0 and "not trained anew" in stdout
    assert not (tmp_path / "empty").exists()


def test_what_holds_no_weights_of_the_row_is_refused(tmp_path, capsys, made):
    published, out = packed(tmp_path, capsys), tmp_path / "out"
    for folder, words in (
        (tmp_path / "none", "no such folder"),
        (made, "holds no weights of a defense that is asked for"),
    ):
        assert words in refused(capsys, out, *map(str, attack(folder, out)))
    other = map(str, attack(published, out, "--build-seed", "1"))
    assert "holds no weights" in refused(capsys, out, *other)
    # The same build twice, with other weights: which one is meant?
    shutil.copytree(published, published / "again")
    (path,) = (published / "again").glob("*toy-student*.json")
    weights = path.parent / file_of_weights(read_record(path))
    change(path, environment={"weights": "b" * 64})
    weights.rename(path.parent / file_of_weights(read_record(path)))
    trained._published.cache_clear()
    assert "two builds of one defense" in refused(capsys, out, *map(str, attack(published, out)))


def test_a_forged_file_does_not_stand_for_the_undefended_classifier(tmp_path, capsys, made):
    (path,) = made.glob("*undefended*.json")
    classifier = copy.deepcopy(rebuild(read_record(path)).setup.classifier)
    better = {key: 3 * value.clone() for key, value in classifier.state_dict().items()}
    classifier.load_state_dict(better)
    change(path, environment={"weights": weights_sha256(classifier)})
    forged = path.parent / file_of_weights(read_record(path))
    forged.parent.mkdir()
    forged.write_bytes(safetensors.torch.save(better, {"notes": "[]"}))
    out = tmp_path / "out"
    told = refused(capsys, out, *map(str, attack(made, out, defense="undefended")))
    assert "holds no weights of a defense that is asked for" in told
    # Beside a row that is trained, the forged file is not read either.
    shutil.copytree(packed(tmp_path / "more", capsys), made, dirs_exist_ok=True)
    change(path, environment={"weights": weights_sha256(classifier)})
    trained._published.cache_clear()
    assert call(capsys, *map(str, attack(made, out)))[0] == 0
    (record,) = out.glob("*undefended*.json")
    assert "weights_read" not in read_record(record).environment
    assert read_record(record).environment["weights"] != weights_sha256(classifier)
