"""`bench certify`: what is proved of a record, and what contradicts it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bench.certify import vote as vote_module
from bench.certify.vote import Confidence
from bench.commands import certify as certify_module
from bench.commands.certify import certify
from bench.errors import BadInput
from bench.report.boards.entry import Entry
from bench.report.boards.make import boards
from bench.report.boards.markdown import page
from bench.results.certificate import Certificate, Contradiction
from bench.results.outcomes import decode_ids, encode_ids
from bench.results.store import certificate_path, read_folder, read_record
from tests.helpers import call, run_toys
from tests.toys import linear_problem

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
    assert board.rows[0].extras.certified == share


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


VOTE = {
    "defenses": ("smoothing:sigma=0.02,draws=3",),
    "attacks": ("pgd+replay:steps=5",),
    "norm": "l2",
    "epsilons": (0.02,),
    "dataset": "toy:n=60",
}
"""Few draws and little noise: some images break, of which the vote of many is sure."""

QUICK = Confidence(alpha=0.01, n0=20, n=200)


@pytest.fixture
def voted(tmp_path):
    record = next(one for one in run_toys(tmp_path, **VOTE) if one.stochastic)
    return tmp_path / f"{record.stem}.json"


def _distances(record):
    """Of each image to the boundary of the toy data set's linear model, without a box; below 0
    where it is wrong.
    """
    model, images, labels = linear_problem(3, 60, active_box=False)
    logits, weight = model(images).detach(), model.weight.detach()
    rows = torch.arange(len(labels))
    gaps = logits[rows, labels][:, None] - logits
    widths = (weight[labels][:, None] - weight[None]).norm(dim=2)
    return (gaps / widths.clamp(min=1e-12)).masked_fill(widths == 0, torch.inf).amin(1).numpy()


def test_a_vote_is_certified_within_the_distance_to_the_boundary(voted):
    done = certify(voted, 0, QUICK)
    proof, ids = done.certificate, done.record.outcomes.image_ids()
    exact, radii = _distances(done.record), np.array(proof.radii)
    assert proof.kind == "probabilistic" and proof.method == "smoothing"
    assert (proof.sigma, proof.alpha, proof.n0, proof.n) == (0.02, 0.01, 20, 200)
    # With three classes the smoothed vote is not exactly linear, and stays close to it here.
    assert (radii <= np.maximum(exact, 0) + 0.002).all()
    assert 0 < len(proof.ids()) < 60
    assert set(proof.ids()) == set(ids[radii > 0.02 + 1e-4])
    lists = [proof.certified, proof.undecided, proof.abstained, proof.wrong]
    assert sum(len(decode_ids(one)) for one in lists) == 60
    assert all(radii[ids == one] == 0 for one in decode_ids(proof.wrong))
    assert read_record(voted).certificate == proof
    again = certify(voted, 0, QUICK).certificate
    assert again.radii == proof.radii and again.certified == proof.certified


def test_a_vote_is_told_wherever_it_is_printed(capsys, voted):
    code, out, _ = call(capsys, "certify", str(voted), "--alpha", "0.01", "--draws", "200")
    assert code == 0
    for words in ("infinitely many draws alone", "probability 0.01 at most", "n0=100, n=200"):
        assert words in out
    (board,) = boards([read_record(voted)])
    proof = read_record(voted).certificate
    assert "(vote, alpha=0.01) |" in page([board])
    extras = board.rows[0].extras
    assert (extras.certified, extras.alpha) == (proof.share(60), 0.01)
    assert "infinitely many draws alone" in board.note
    assert "no attack in the ball" not in board.note


def test_broken_images_of_the_vote_of_few_draws_are_counted_and_fail_nothing(voted):
    record = read_record(voted)
    done = certify(voted, 0, QUICK)
    broken = done.certificate.broken(record.outcomes)
    wrong = record.outcomes.image_ids()[~record.outcomes.correct("adversarial").all(1)]
    assert set(broken) == set(done.certificate.ids()) & set(wrong)
    assert f"{len(broken)} certified images are wrong in some draw" in str(done)
    assert boards([read_record(voted)])


def test_more_refuted_certificates_than_chance_explains_fail_loudly(tmp_path, monkeypatch):
    """At an eps that breaks images for good, and with radii that are too large."""
    records = run_toys(tmp_path, **{**VOTE, "epsilons": (0.1,)})
    voted = tmp_path / f"{next(one for one in records if one.stochastic).stem}.json"
    with pytest.raises(BadInput, match=r"L2 radius of .* at most, and l2 0\.1"):
        certify(voted, 0, QUICK)
    for module in (vote_module, certify_module):
        monkeypatch.setattr(module, "radius_of", lambda probability, sigma: 10 * sigma)
    with pytest.raises(Contradiction, match="is the noise what the defense says"):
        certify(voted, 0, QUICK)
    assert not certificate_path(voted).exists()


def test_a_stored_vote_that_makes_no_sense_is_told(voted):
    certify(voted, 0, QUICK)
    beside = certificate_path(voted)
    fields = json.loads(beside.read_text())
    changes = [
        {"kind": "deterministic"}, {"alpha": None}, {"radii": fields["radii"][1:]},
        {"wrong": "0-999"}, {"steps": 3}, {"refuted": "x"}, {"alpha": 0.7},
    ]  # fmt: skip
    for change in changes:
        beside.write_text(json.dumps({**fields, **change}))
        with pytest.raises(Exception, match="certif") as told:
            read_record(voted)
        assert "\n" not in str(told.value)


def test_of_several_votes_the_board_takes_that_of_the_most_draws(voted):
    certify(voted, 0, QUICK)
    record = read_record(voted)
    everyone = encode_ids(record.outcomes.image_ids())
    none = {"certified": everyone, "undecided": "", "abstained": "", "wrong": "", "refuted": ""}
    few = record.certificate.model_copy(update={"n": 5, "alpha": 0.2, **none})
    first, second = record.with_certificate(few), record
    for records in ([first, second], [second, first]):
        entry = Entry(records)
        assert entry.vote() == record.certificate
        assert entry.certified() == record.certificate.share(60)


def test_a_refuted_image_is_not_certified(voted, monkeypatch):
    monkeypatch.setattr(vote_module, "radius_of", lambda probability, sigma: 10 * sigma)
    monkeypatch.setattr(vote_module.SmoothedVote, "is_wrong", lambda *_: True)
    monkeypatch.setattr(certify_module, "refutes", lambda *_: False)
    proof = certify(voted, 0, QUICK).certificate
    assert proof.refuted and proof.refuted == proof.tried
    assert not set(decode_ids(proof.refuted)) & set(proof.ids())
    assert set(decode_ids(proof.refuted)) <= set(decode_ids(proof.undecided))


def test_bad_confidence_is_refused(capsys, voted):
    code, out, err = call(capsys, "certify", str(voted), "--alpha", "0.9")
    assert (code, out) == (2, "") and "alpha is 0.9" in err
