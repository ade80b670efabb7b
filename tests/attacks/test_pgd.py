"""PGD against models whose robust accuracy is known exactly, and which candidates it keeps."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from bench_attacks import pgd as module
from bench_attacks.pgd import PGD, PGDParams

from bench.losses import margin
from bench.maximise import Ascent, ascend
from bench.threat import Ball, ThreatModel
from bench.victim import Victim
from tests.toys import attack_robust, classifier, exact_distance, linear_problem

CASES = list(itertools.product(("linf", "l2"), (False, True), (2, 3, 10)))


def pgd(**params):
    return PGD(PGDParams(**params))


@cache
def case(norm: str, active_box: bool, classes: int):
    """A linear problem, the eps that breaks half of it, and the exact distances."""
    model, images, labels = linear_problem(classes, 120, active_box=active_box)
    distance = exact_distance(model, images, labels, norm)
    return model, images, labels, ThreatModel(norm, float(np.median(distance))), distance


def check_exact(norm: str, active_box: bool, classes: int, attack) -> None:
    """The attack's robust accuracy equals the exact one, point by point, 1 % around eps aside."""
    model, images, labels, threat, distance = case(norm, active_box, classes)
    robust = attack_robust(classifier(model, classes), images, labels, attack, threat)
    clear = abs(distance / threat.eps - 1) > 0.01
    wrong = (robust != (distance > threat.eps)) & clear
    assert clear.mean() > 0.85
    assert not wrong.any(), f"{wrong.sum()} of {len(wrong)} verdicts are wrong"


@pytest.mark.parametrize(("norm", "active_box", "classes"), CASES)
@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_pgd_is_exact_on_linear_models(norm, active_box, classes, loss):
    check_exact(norm, active_box, classes, pgd(steps=40, step="eps/4", loss=loss, restarts=10))


@pytest.mark.parametrize("active_box", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_pgd_in_l1_is_within_one_percent_on_linear_models(active_box, classes):
    """Steps into single pixels end at the edge between two of them, so they are short; with three
    classes the margin has a local maximum from which no start escapes.
    """
    model, images, labels, threat, distance = case("l1", active_box, classes)
    attack = pgd(steps=100, loss="margin", restarts=5)
    robust = attack_robust(classifier(model, classes), images, labels, attack, threat)
    assert abs(robust.mean() - (distance > threat.eps).mean()) <= 0.01
    assert not (~robust & (distance > 1.001 * threat.eps)).any()


@pytest.mark.parametrize(("norm", "active_box", "classes"), [c for c in CASES if c[2] == 2])
def test_cross_entropy_is_exact_with_two_classes(norm, active_box, classes):
    check_exact(norm, active_box, classes, pgd(steps=40, step="eps/4"))


@pytest.mark.parametrize(("norm", "active_box", "classes"), [c for c in CASES if c[2] > 2])
def test_cross_entropy_is_sound_and_close_with_more(norm, active_box, classes):
    """Cross-entropy can rise by spreading mass while the margin falls, so a few points may survive;
    none is broken wrongly.
    """
    model, images, labels, threat, distance = case(norm, active_box, classes)
    attack = pgd(steps=40, step="eps/4", restarts=5)
    robust = attack_robust(classifier(model, classes), images, labels, attack, threat)
    assert not (~robust & (distance > 1.01 * threat.eps)).any()
    assert abs(robust.mean() - (distance > threat.eps).mean()) <= 0.05


def test_fgsm_is_one_full_step_from_the_image():
    model, images, labels, threat, _ = case("linf", False, 2)
    defended = classifier(model, 2)
    victim = Victim(defended, np.arange(len(images)))
    points = pgd(steps=1, step="eps", random_start=False)(victim, images, labels, threat).points
    gap = model.weight[1] - model.weight[0]
    expected = images + threat.eps * torch.where(labels == 0, 1.0, -1.0)[
        :, None, None, None
    ] * gap.sign().reshape(1, 1, 4, 4)
    assert torch.allclose(points, expected, atol=1e-6)


# Each of these breaks the suite in a way that has happened in the field; the exact test must
# notice.


class Clamped(torch.nn.Module):
    """Clamps inside the forward pass: a pixel at a bound or outside gets no gradient, as under
    torch 2.15.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        inside = (images > 0) & (images < 1)
        return self.model(torch.where(inside, images, images.detach().clamp(0, 1)))


def no_op(monkeypatch):
    monkeypatch.setattr(PGD, "run", lambda self, victim, images, labels, threat: images)


def wrong_sign(monkeypatch):
    right = Ball.ascend
    monkeypatch.setattr(Ball, "ascend", lambda self, x, g, size: right(self, x, -g, size))


def first_step_only(monkeypatch):
    right = ascend
    monkeypatch.setattr(
        "bench_attacks.pgd.ascend", lambda *a, steps, size: right(*a, steps=1, size=size / 8)
    )


@pytest.mark.parametrize("mutation", [no_op, wrong_sign, first_step_only])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_mutations_of_the_attack_are_caught(mutation, norm, monkeypatch):
    case(norm, True, 3)
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        check_exact(norm, True, 3, pgd(steps=40, step="eps/4", loss="margin", restarts=3))


@pytest.mark.parametrize("factor", [1 / 255, 255])
def test_an_eps_in_the_wrong_scale_is_caught(factor):
    model, images, labels, threat, distance = case("linf", False, 3)
    wrong = ThreatModel("linf", min(threat.eps * factor, 1.0))
    robust = attack_robust(
        classifier(model, 3), images, labels, pgd(steps=20, loss="margin"), wrong
    )
    assert (robust != (distance > threat.eps)).mean() > 0.2


def test_a_missing_projection_is_caught(monkeypatch):
    model, images, labels, threat, _ = case("linf", True, 3)
    monkeypatch.setattr(Ball, "ascend", lambda self, x, g, size: x + size * g.sign())
    monkeypatch.setattr(ThreatModel, "project", lambda self, x, origin: x)
    with pytest.raises(AssertionError):
        attack_robust(classifier(model, 3), images, labels, pgd(steps=20, loss="margin"), threat)


def test_a_clamp_inside_the_forward_pass_under_attacks():
    """An iterate that leaves the box and is clamped on the way in gets no gradient there; ours
    never leaves it.
    """
    model, images, labels, threat, _ = case("linf", True, 3)
    attack = pgd(steps=40, step="eps/4", loss="margin", restarts=3)
    plain = attack_robust(classifier(model, 3), images, labels, attack, threat)
    theirs = outside_the_box(Clamped(model), images, labels, threat)
    assert theirs.mean() > plain.mean() + 0.02


def outside_the_box(model, images, labels, threat):
    x = images.clone()
    for _ in range(40):
        x.requires_grad_(True)
        (slope,) = torch.autograd.grad(margin(model(x), labels).sum(), x)
        x = (x.detach() + threat.eps / 4 * slope.sign()).clamp(
            images - threat.eps, images + threat.eps
        )
    return (model(x).argmax(1) == labels).numpy()


# Which candidate is kept -----------------------------------------------------------------------


class Scored:
    """A victim under fresh randomness whose loss on fresh draws is the mean of the pixels."""

    fixed = False

    def objective(self, labels, loss, *, rows, restart):
        return None

    def score(self, x, rows, labels, loss, draws):
        return x.flatten(1).mean(1)


def ascent_to(points, last, value=100.0):
    values = torch.full((len(points),), value)
    nothing = torch.zeros(len(points), dtype=torch.bool)
    return lambda *_, **__: Ascent(points, values, nothing, last)


def test_of_two_candidates_the_one_with_the_larger_loss_on_fresh_draws_is_kept(monkeypatch):
    """Image 0 has the better last iterate, image 1 the better point of largest loss."""
    images = torch.zeros(2, 1, 2, 2)
    points, last = images.clone(), images.clone()
    points[0], last[0], points[1], last[1] = 0.1, 0.3, 0.4, 0.2
    monkeypatch.setattr(module, "ascend", ascent_to(points, last))
    attack = PGD(PGDParams(random_start=False))
    kept = attack.run(Scored(), images, torch.zeros(2).long(), ThreatModel("linf", 0.5))
    assert kept.flatten(1).mean(1).tolist() == torch.tensor([0.3, 0.4]).tolist()


def test_a_later_restart_replaces_a_point_only_by_a_better_one(monkeypatch):
    """The loss on fresh draws decides between restarts, not the loss that a search has seen."""
    images = torch.zeros(1, 1, 2, 2)
    searches = iter([(0.3, 100.0), (0.2, 200.0), (0.4, 50.0)])

    def search(*_, **__):
        pixel, seen = next(searches)
        point = torch.full_like(images, pixel)
        return ascent_to(point, point, seen)()

    monkeypatch.setattr(module, "ascend", search)
    attack = PGD(PGDParams(random_start=False, restarts=3))
    kept = attack.run(Scored(), images, torch.zeros(1).long(), ThreatModel("linf", 0.5))
    assert torch.equal(kept, torch.full_like(images, 0.4))
