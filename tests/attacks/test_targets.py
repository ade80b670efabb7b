"""Targeted attacks against linear models whose exact targeted rate is known."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from bench_attacks.autoattack import ApgdCe, ApgdDlr
from bench_attacks.pgd import PGD, PGDParams
from bench_attacks.targets import annealed_margin, target_classes

import bench
from bench.engine.plan import plan
from bench.losses import margin, reached, towards
from bench.plugins.create import create_attack
from bench.randomness import RandomnessModel
from bench.report.rows import rows_table
from bench.results.outcomes import NO_TARGET, decode
from bench.results.store import files_below
from bench.results.targets import share_reached
from bench.storage.identity import identity_hash
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.helpers import ROOT, run_toys, toy_request
from tests.toys import (
    NoisyLinear,
    classifier,
    exact_distance,
    exact_target_distance,
    linear_problem,
    message,
)


@cache
def case(norm: str, active_box: bool, classes: int = 3):
    """A linear problem, random targets, the eps that reaches half of them, the exact distances."""
    model, images, labels = linear_problem(classes, 120, active_box=active_box)
    targets = target_classes("random", victim(model, classes), images, labels)[0]
    distance = exact_target_distance(model, images, targets, norm)
    return model, images, labels, targets, ThreatModel(norm, float(np.median(distance))), distance


def victim(model, classes, **settings):
    return Victim(classifier(model, classes), np.arange(120), **settings)


def attacked(attack, model, images, labels, threat, classes=3):
    seen = victim(model, classes)
    with frozen(model):
        return attack(seen, images, labels, threat)


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("active_box", [False, True])
def test_pgd_reaches_the_exact_rate_of_targets(norm, active_box):
    model, images, labels, targets, threat, distance = case(norm, active_box)
    attack = PGD(PGDParams(targeted="random", loss="margin", steps=150, restarts=3))
    result = attacked(attack, model, images, labels, threat)
    hit = (result.predictions[:, 0] == targets).numpy()
    assert torch.equal(result.targets, targets)
    assert abs(hit.mean() - (distance <= threat.eps).mean()) <= 0.01
    assert not (hit & (distance > 1.001 * threat.eps)).any()


@pytest.mark.parametrize("classes", [2, 5, 10])
@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("active_box", [False, True])
def test_a_smoothed_margin_reaches_the_exact_rate_among_many_classes(norm, active_box, classes):
    """Where three classes and more tie, the margin alone stalls 0 to 6 points below."""
    model, images, labels, targets, threat, distance = case(norm, active_box, classes)
    attack = PGD(PGDParams(targeted="random", loss="softmin", steps=100, restarts=3))
    result = attacked(attack, model, images, labels, threat, classes)
    hit = (result.predictions[:, 0] == targets).numpy()
    assert abs(hit.mean() - (distance <= threat.eps).mean()) <= 0.01
    assert not (hit & (distance > 1.001 * threat.eps)).any()


def test_the_smoothed_margin_is_the_margin_with_the_gradient_of_its_soft_minimum():
    logits = torch.tensor([[1.0, 2.0, 0.5, 3.0]], requires_grad=True)
    loss = annealed_margin(0.5)(logits, torch.tensor([1]))
    assert loss.tolist() == [-1.0]
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    # Margins 1, 1.5 and -1 of class 1; the median is 2 above the smallest, so T = 0.1 * 2.
    soft = logits.detach().double().requires_grad_()
    margins = (soft[:, 1:2] - soft)[:, [0, 2, 3]]
    (exact,) = torch.autograd.grad((-0.2 * (-margins / 0.2).logsumexp(1)).sum(), soft)
    assert torch.allclose(slope.double(), exact, atol=1e-6) and float(slope[0, 1]) == 1
    wide = torch.autograd.grad(annealed_margin(0.0)(logits, torch.tensor([1])).sum(), logits)[0]
    assert wide[0, 0] < -0.15 and slope[0, 0] > -1e-4


def test_a_masked_class_neither_widens_nor_spoils_the_soft_minimum():
    logits = torch.tensor([[1.0, 2.0, -torch.inf, 3.0, 0.5]], requires_grad=True)
    loss = annealed_margin(0.0)(logits, torch.tensor([1]))
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(slope).all() and slope[0, 2] == 0 and slope[0, 3] < -0.5


def test_softmin_without_a_class_to_reach_is_refused():
    text = message(lambda: plan(toy_request(attacks=("pgd:loss=softmin",))))
    assert "targeted=" in text


@pytest.mark.parametrize(("kind", "within"), [(ApgdCe, 0.04), (ApgdDlr, 0.06)])
@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_apgd_comes_close_to_it(kind, within, norm):
    model, images, labels, targets, threat, distance = case(norm, True)
    attack = kind(kind.Params(targeted="random"))
    result = attacked(attack, model, images, labels, threat)
    hit = (result.predictions[:, 0] == targets).numpy()
    assert abs(hit.mean() - (distance <= threat.eps).mean()) <= within
    assert not (hit & (distance > 1.001 * threat.eps)).any()
    assert result.reprojected == 0


def test_each_class_in_turn_is_the_exact_robust_accuracy():
    """No class is out of reach of a search of its own, where the margin over all of them has local
    maxima.
    """
    model, images, labels = linear_problem(3, 120, active_box=True)
    distance = exact_distance(model, images, labels, "l1")
    threat = ThreatModel("l1", float(np.median(distance)))
    attack = PGD(PGDParams(targeted="each", loss="margin", steps=150, restarts=3))
    result = attacked(attack, model, images, labels, threat)
    right = (result.predictions[:, 0] == labels).numpy()
    clear = abs(distance / threat.eps - 1) > 0.01
    assert not ((right != (distance > threat.eps)) & clear).any()
    assert result.targets is None


def test_a_point_that_is_wrong_otherwise_ranks_above_the_right_ones_and_ends_no_search():
    """An image of each class read as the same image: right, wrong otherwise, and the target."""
    model, images, labels = linear_problem(3, 120, active_box=False)
    x = torch.stack([images[labels == k][0] for k in (0, 1, 2)])
    truth, target = torch.zeros(3).long(), torch.full((3,), 2)
    seen, rows = Victim(classifier(model, 3), np.arange(3)), torch.arange(3)
    for any_wrong, success in ((False, [False, False, True]), (True, [False, True, True])):
        objective = seen.objective(truth, towards(margin), targets=target, any_wrong=any_wrong)
        reading = objective(x, rows, 0, False)
        assert reading.success.tolist() == success
    reading = seen.objective(truth, towards(margin), targets=target)(x, rows, 0, False)
    assert reading.value[0] < 100 < reading.value[1]


def test_images_that_miss_their_target_are_broken_otherwise():
    model, images, labels, targets, threat, distance = case("linf", False)
    attack = PGD(PGDParams(targeted="random", loss="margin", steps=60, restarts=2))
    answers = attacked(attack, model, images, labels, threat).predictions[:, 0]
    assert int(((answers != labels) & (answers != targets)).sum()) > 3
    assert ((answers == targets).numpy() & (distance < threat.eps)).sum() > 50


def test_a_class_number_leaves_its_own_images_alone():
    model, images, labels, *_, threat, _ = case("linf", False)
    result = attacked(PGD(PGDParams(targeted="1", steps=5)), model, images, labels, threat)
    own = labels == 1
    assert 10 < int(own.sum()) < 110
    assert torch.equal(result.points[own], images[own])
    assert (result.targets[own] == NO_TARGET).all() and (result.targets[~own] == 1).all()


def test_a_target_depends_on_the_image_and_the_seed_and_not_on_the_batch():
    model, images, labels = linear_problem(10, 120, active_box=False)
    for how in ("random", "least-likely"):
        whole = target_classes(how, victim(model, 10), images, labels)[0]
        order = np.arange(120)[::-1][:50].copy()
        part = Victim(classifier(model, 10), order)
        rows = torch.from_numpy(order)
        assert torch.equal(target_classes(how, part, images[rows], labels[rows])[0], whole[rows])
        assert (whole != labels).all() and 0 <= int(whole.min()) <= int(whole.max()) < 10
    first, other = (
        target_classes("random", victim(model, 10, root=root), images, labels)[0] for root in (0, 1)
    )
    assert 0.5 < float((first != other).float().mean()) < 1
    counts = torch.bincount((first - labels) % 10, minlength=10)
    assert counts[0] == 0 and (counts[1:] > 2).all()


def test_each_takes_the_most_likely_class_first_and_the_true_one_never():
    model, images, labels = linear_problem(4, 120, active_box=False)
    classes = torch.stack(target_classes("each", victim(model, 4), images, labels))
    logits = model(images)
    assert not (classes == labels).any()
    steps = logits.gather(1, classes.T).diff(dim=1)
    assert (steps <= 0).all() and classes.shape == (3, 120)
    least = target_classes("least-likely", victim(model, 4), images, labels)[0]
    assert torch.equal(least, classes[-1])


def test_under_fresh_draws_the_points_lean_towards_the_target():
    model, images, labels, targets, threat, _ = case("linf", False)
    noisy = NoisyLinear(model, 0.05)
    hits = []
    for how in ("random", None):
        attack = PGD(PGDParams(targeted=how, loss="margin", steps=15))
        seen = Victim(noisy, np.arange(120), randomness=RandomnessModel("eot", 3))
        with frozen(noisy):
            points = attack(seen, images, labels, threat).points
        hits.append(float((model(points).argmax(1) == targets).float().mean()))
    assert hits[0] > hits[1] + 0.1


def test_a_target_is_reached_by_more_than_rounding():
    logits = torch.tensor([[1.0, 1.0 + 1e-6], [1.0, 1.1], [float("nan"), 2.0]])
    assert reached(logits, torch.tensor([1, 1, 1])).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pgd:targeted=3", "from 0 to 2"),
        ("apgd-ce:targeted=7", "from 0 to 2"),
        ("pgd:targeted=nearest", "least-likely"),
        ("pgd:targeted=-1", "class number"),
        ("pgd:loss=dlr,targeted=1", "apgd-dlr"),
    ],
)
def test_what_is_no_target_is_refused(spec, words):
    request = toy_request(defenses=("undefended",), attacks=(spec,))
    assert words in message(lambda: plan(request))


def test_the_record_tells_targets_and_how_many_were_reached(tmp_path):
    record = run_toys(
        tmp_path, defenses=("undefended",), attacks=("pgd:steps=5,targeted=random",), eps=0.1
    )[-1]
    targets = decode(record.targets, 3)
    clean_wrong = ~record.outcomes.correct("clean")[:, 0]
    assert ((targets == NO_TARGET) == clean_wrong).all()
    answers = record.outcomes.predictions("adversarial")[:, 0]
    rate = (answers == targets)[~clean_wrong].mean()
    assert share_reached(targets, record.outcomes).value == pytest.approx(rate)
    (finding,) = [one for one in record.findings if one.name == "targets"]
    assert f"{100 * rate:.1f}" in finding.message and "every wrong answer" in finding.message
    table = rows_table([record])
    assert "target reached" in table and "counts every wrong answer" in table
    plain = run_toys(tmp_path, defenses=("undefended",), attacks=("pgd:steps=5",), eps=0.1)[-1]
    assert plain.targets is None and "target reached" not in rows_table([plain])


def test_a_record_with_a_target_of_its_own_class_is_none(tmp_path):
    record = run_toys(
        tmp_path, defenses=("undefended",), attacks=("pgd:steps=2,targeted=2",), eps=0.1
    )[-1]
    told = record.model_dump(mode="json")
    bench.Record.model_validate(told)
    for targets in (record.outcomes.labels, record.targets[:-1], "z" + record.targets[1:]):
        with pytest.raises(ValueError, match=r"target|class|digits"):
            bench.Record.model_validate({**told, "targets": targets})


def test_ids_of_records_from_before_stay():
    """Every record under one of these attacks is planned with the parameters that it names."""
    found = 0
    for path in files_below(ROOT / "leaderboards" / "records"):
        record = bench.read_record(path)
        attack = record.identity["attack"]
        if attack["name"] in ("pgd", "apgd-ce", "apgd-dlr"):
            found += 1
            assert create_attack(record.title["attack"]).attack.identity == attack, path
            assert identity_hash(record.identity) == record.id
    assert found > 50


def test_a_parameter_that_came_later_changes_no_identity():
    (untargeted,) = plan(toy_request(defenses=("undefended",), attacks=("pgd",)))
    (targeted,) = plan(toy_request(defenses=("undefended",), attacks=("pgd:targeted=1",)))
    assert "targeted" not in untargeted.identity["attack"]["params"]
    assert targeted.identity["attack"]["params"]["targeted"] == "1"
    assert replace(untargeted, attack=targeted.attack).id == targeted.id != untargeted.id
