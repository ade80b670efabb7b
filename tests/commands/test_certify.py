"""`bench certify`: what is proved of a record, and what contradicts it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.commands import certify as certify_module
from bench.commands.certify import certify
from bench.report.leaderboard import boards
from bench.results.certificate import Certificate, Contradiction
from bench.results.store import certificate_path, read_folder, read_record
from tests.helpers import call, run_toys

LINEAR = {
    "defenses": ("undefended",),
    "attacks": ("pgd:steps=100,loss=margin,restarts=3",),
    "epsilons": (0.01,),
}
"""On a linear model attack and proof meet."""


@pytest.fixture
def path(tmp_path):
    (record,) = run_toys(tmp_path, **LINEAR)
    return tmp_path / f"{record.stem}.json"


def test_attack_and_proof_meet_on_a_linear_model(path):
    done = certify(path, steps=0)
    left = done.record.outcomes.correct("adversarial").all(1)
    assert 0 < left.sum() < len(left)
    assert done.certificate.ids().tolist() == done.record.outcomes.image_ids()[left].tolist()
    assert done.certificate.undecided == ""
    assert done.certificate.tried
    assert read_record(path).certificate == done.certificate


def test_the_command_prints_both_bounds_and_boards_show_the_lower_one(capsys, path):
    code, out, _ = call(capsys, "certify", str(path), "--steps", "0")
    assert code == 0
    share = read_record(path).metrics.adversarial.all_draws
    assert f"certified {share} <= truth <= attacked {share} (crown, 0 of 150" in out
    code, out, _ = call(capsys, "certify", str(path.parent), "--json")
    assert json.loads(out)[0]["certificate"]["method"] == "alpha-crown"
    (board,) = boards(list(read_folder(path.parent)))
    assert board.table["certified"].tolist() == [str(share)]
    assert board.numbers["certified"].tolist() == [share.value]


def test_a_proof_of_a_broken_image_fails_loudly(capsys, path, monkeypatch):
    monkeypatch.setattr(
        certify_module.Crown, "margins", lambda _, x, y, *, steps: np.inf * (y.double() + 1)
    )
    with pytest.raises(Contradiction, match="one of the two is wrong"):
        certify(path, steps=0)
    assert call(capsys, "certify", str(path))[0] == 2
    assert not certificate_path(path).exists()


def test_a_stored_proof_of_an_image_that_a_record_breaks_is_told(path):
    certify(path, steps=0)
    record, beside = read_record(path), certificate_path(path)
    fields = json.loads(beside.read_text())
    broken = record.outcomes.image_ids()[~record.outcomes.correct("adversarial").all(1)]
    beside.write_text(json.dumps({**fields, "certified": str(broken[0]), "tried": ""}))
    with pytest.raises(Contradiction):
        read_record(path)
    for change in ({"record": "0" * 16}, {"certified": "0-999999"}, {"steps": 3}, {"tried": "x"}):
        beside.write_text(json.dumps({**fields, **change}))
        with pytest.raises(Exception, match="certif") as told:
            read_record(path)
        assert "\n" not in str(told.value)


def test_another_attack_that_breaks_a_certified_image_is_told_by_the_board(tmp_path):
    weak, strong = run_toys(tmp_path, defenses=("undefended",), attacks=("null", "pgd"))
    left = weak.outcomes.image_ids()[weak.outcomes.correct("adversarial").all(1)]
    proof = Certificate(
        record=weak.id, method="crown", steps=0, certified=",".join(map(str, left[:1])),
        undecided="", tried="", seconds=0.0, finished=weak.finished,
    )  # fmt: skip
    broken = ~strong.outcomes.correct("adversarial").all(1)
    image = strong.outcomes.image_ids()[broken & weak.outcomes.correct("adversarial").all(1)][0]
    proof = proof.model_copy(update={"certified": str(image)})
    with pytest.raises(Contradiction, match=strong.id):
        boards([weak.with_certificate(proof), strong])


def test_what_stands_around_a_network_is_refused(capsys, tmp_path):
    run_toys(tmp_path, attacks=("null",))
    code, out, err = call(capsys, "certify", str(tmp_path))
    assert code == 0 and "not certified" in out and err == ""
    (jitter,) = tmp_path.glob("*toy-jitter*.json")
    code, out, err = call(capsys, "certify", str(jitter))
    assert (code, out) == (2, "") and "cannot be certified" in err
