"""`bench audit` on records, folders and specs: what it stores, prints, and how it exits."""

import json
import os
import sys

import numpy as np
import pytest

from bench.commands import audit_records
from bench.results.store import audit_path, read_record
from tests.audit.helpers import Hidden
from tests.helpers import MODEL, ROOT, call, refused, run_toys
from tests.toys import linear_problem

TOY = (
    "--dataset=toy:n=30",
    f"--classifier={MODEL}",
    "--attack=pgd:steps=5",
    "--device=cpu",
    "--eps=0.01",
)


def make_hidden():
    """A classifier whose gradient is hidden, for the command line."""
    return Hidden()


@pytest.fixture
def stored(tmp_path):
    record = run_toys(tmp_path, defenses=("undefended",), attacks=("pgd:steps=5",), n=30)[-1]
    return tmp_path, tmp_path / f"{record.stem}.json"


def test_a_record_is_audited_and_the_audit_lies_beside_it(capsys, stored, monkeypatch):
    # A new process would not know the data set of these tests.
    monkeypatch.setattr(audit_records, "of_python", lambda _: True)
    folder, path = stored
    code, out, _ = call(capsys, "audit", str(path), "--device=cpu")
    assert code == 0 and "no-evidence-found (standard, 30 images" in out
    audit = read_record(path).audit
    assert audit.profile == "standard" and len(audit.checks) > 15
    assert {"S1", "S6", "S8", "S15", "S16", "P8"} <= {check.id for check in audit.checks}
    assert any(check.forwards > 1 for check in audit.checks)
    # The folder holds one record still, and its audit shows where the record is shown.
    code, out, _ = call(capsys, "leaderboard", str(folder))
    assert code == 0 and "no-evidence-found" in out
    code, out, _ = call(capsys, "show", str(path))
    assert "audit (standard): no-evidence-found" in out
    # A shell's pattern matches the audit as well, which is read with its record.
    both = [str(path), str(audit_path(path))]
    for command in ("show", "verify", "leaderboard", "certify"):
        code, out, err = call(capsys, command, *both)
        assert "no record" not in out + err, (command, out, err)
    assert "name the record" in refused(capsys, folder / "none", "show", both[1])
    # A stored audit that is as deep is not made again, but where that is asked for.
    written = audit_path(path).read_bytes()
    code, out, _ = call(capsys, "audit", str(folder), "--profile=quick", "--format=json")
    assert code == 0 and [one["profile"] for one in json.loads(out)] == ["standard"]
    assert audit_path(path).read_bytes() == written
    call(capsys, "audit", str(folder), "--profile=quick", "--again")
    assert read_record(path).audit.profile == "quick"


REMEMBERS = """
import builtins
import torch
from bench.defense import Defense, InputTransform

builtins.seen_images = torch.empty(0)


class Near(InputTransform):
    def transform(self, x, noise):
        seen, flat, found = builtins.seen_images, x.detach().flatten(1), x.detach().clone()
        if not len(seen):
            seen = builtins.seen_images = flat[:64].clone()
        far = (flat[:, None] - seen).abs().amax(2)
        near = far.amin(1) <= 0.11
        found[near] = seen[far.argmin(1)][near].reshape(found[near].shape)
        return found + 0 * x


class Remembers(Defense):
    builds = Near

    def build(self, classifier, access, noise):
        return Near(classifier)
"""


def test_what_a_defense_remembers_outside_of_its_modules_is_found(capsys, tmp_path, monkeypatch):
    """No state of a module moves, and copies share it. Mutation: the clean images asked first."""
    (tmp_path / "near.py").write_text(REMEMBERS)
    _, images, labels = linear_problem(3, 30, active_box=False)
    np.savez(tmp_path / "d.npz", x_test=images.permute(0, 2, 3, 1).numpy(), y_test=labels.numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    setup = ("--dataset=npz:d.npz", f"--classifier={MODEL}", "--eps=0.05", "--device=cpu")
    ran = call(capsys, "run", "--defense=./near.py@Remembers", "--attack=pgd:steps=5", *setup)
    assert ran[0] == 0
    (path,) = (tmp_path / "results").glob("*near*.json")
    code, out, _ = call(capsys, "audit", str(path), "--device=cpu", "--trust", "--format=json")
    (said,) = [one for one in json.loads(out)[0]["checks"] if one["id"] == "S20"]
    assert code == 1 and said["verdict"] == "fail", said


def test_a_damaged_audit_is_made_anew(capsys, stored):
    _, path = stored
    audit_path(path).write_text("{}")
    assert call(capsys, "show", str(path))[0] == 2
    assert call(capsys, "audit", str(path), "--profile=quick")[0] == 0
    assert call(capsys, "show", str(path))[0] == 0


def test_masking_evidence_is_exit_code_1(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    hidden = f"--classifier={ROOT}/tests/commands/test_audit.py@make_hidden"
    arguments = [one for one in TOY if not one.startswith("--classifier")]
    code, out, err = call(
        capsys, "audit", "--defense=undefended", *arguments, hidden, f"--out={tmp_path}"
    )
    assert code == 1 and "masking-evidence" in out, err
    (path,) = tmp_path.glob("*--????????????????.json")
    record = read_record(path)
    assert {"S5", "S6"} <= {check.id for check in record.audit.failed}
    # Its points are an attack of their own for the worst case.
    left = record.outcomes.correct("adversarial").mean()
    assert record.extra_correct()["audit"].mean() < left
    code, out, _ = call(capsys, "audit", str(path), "--format=sarif", "--profile=quick")
    results = json.loads(out)["runs"][0]["results"]
    assert code == 1 and {one["level"] for one in results} >= {"error"}


def test_one_that_cannot_be_audited_holds_up_no_other(capsys, stored):
    folder, path = stored
    (folder / "broken--x.json").write_text("{}")
    code, out, err = call(capsys, "audit", str(folder), "--profile=quick")
    assert code == 2 and "no-evidence-found (quick" in out and "broken--x.json" in err
    assert audit_path(path).exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "give records"),
        (("{path}", "--defense=undefended"), "give records"),
        (("{path}", "--profile=deep"), "unknown profile"),
        (("{path}", "--format=xml"), "table, json, sarif"),
        (("nowhere.json",), "nowhere.json"),
        (("{folder}/nothing",), "is not there"),
        (("--defense=undefended", "--attack=frob"), "frob"),
    ],
)
def test_what_cannot_be_audited_is_one_line(capsys, stored, arguments, why):
    folder, path = stored
    given = [one.format(path=path, folder=folder) for one in arguments]
    code, out, err = call(capsys, "audit", *given)
    assert code == 2 and out == "" and why in err and len(err.splitlines()) == 1
    assert not list(folder.glob("*.audit.json"))


def test_a_control_is_not_searched(capsys, tmp_path):
    code, out, _ = call(
        capsys,
        "audit",
        "--defense=undefended",
        *[one for one in TOY if not one.startswith("--attack")],
        "--attack=null",
        f"--out={tmp_path}",
    )
    assert code == 0 and "no-evidence-found (standard," in out
