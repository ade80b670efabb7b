"""`fmn`: its contract, its record, and that no point outside the ball counts as broken."""

import numpy as np
import pytest
import torch
from bench_attacks.fmn import FMN

from bench.attack import Passes
from bench.results.record import Record
from bench.testing import AttackContract
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.helpers import call, run_toys
from tests.toys import classifier, exact_distance, linear_problem


class TestFMN(AttackContract):
    attack = "fmn:steps=20"


class TestFMNFromManyStarts(AttackContract):
    attack = "fmn:steps=8,classes=0,restarts=2"


def run(tmp_path, attack="fmn:steps=40", **changes) -> Record:
    asked = {"defenses": ("undefended",), "attacks": (attack,), "dataset": "toy:n=40"}
    return run_toys(tmp_path, **{**asked, "eps": 0.01, **changes})[-1]


def left(record: Record) -> np.ndarray:
    return record.outcomes.correct("adversarial").mean(1) > 0.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.003, 0.02])
def test_the_row_counts_points_of_its_ball_alone(tmp_path, norm, eps):
    model, images, labels = linear_problem(3, 40, active_box=False)
    exact = exact_distance(model, images, labels, norm)
    record = run(tmp_path, eps=eps, norm=norm)
    far = record.distances.array()
    assert np.isfinite(far).all()
    assert (left(record) == (far > eps)).all()
    # What lies outside of the ball was found as well.
    assert far == pytest.approx(exact, rel=0.02, abs=2e-4)
    assert 0 < left(record).sum() < 40
    assert not {"reprojected"} & {one.name for one in record.findings}


def test_the_same_distances_whatever_the_batches(tmp_path):
    one, other = (run(tmp_path / str(size), batch_size=size) for size in (7, 64))
    assert one.outcomes == other.outcomes
    assert one.distances.array() == pytest.approx(other.distances.array(), rel=1e-3)


def test_known_noise_is_measured_under_that_noise(tmp_path):
    record = run(tmp_path, "fmn+replay:steps=20", defenses=("toy-jitter",), eps=0.02)
    replayed = record.outcomes.correct("replayed")[:, 0]
    before = record.outcomes.correct("clean").mean(1) <= 0.5
    far = record.distances.array()
    assert ((far <= 0.02) == ~replayed)[~before].all()
    assert 0 < replayed.sum() < 40


@pytest.mark.parametrize("attack", ["fmn:steps=8,classes=0", "fmn+eot:steps=8,classes=0"])
def test_under_fresh_draws_the_judge_decides(tmp_path, attack):
    record = run(tmp_path, attack, defenses=("toy-jitter",), eps=0.05)
    far = record.distances.array()
    # Half of the ball is a clear way from the boundary, whichever draws are asked.
    clear = far < 0.025
    assert clear.sum() > 10 and not left(record)[clear].any()


def test_it_tells_what_it_costs_and_costs_no_less():
    model, images, labels = linear_problem(4, 10, active_box=True)
    attack, victim = FMN(steps=9, classes=2), Victim(classifier(model, 4), np.arange(10))
    told = attack.passes(4)
    assert told == Passes(9 + 3 + 3 + 3 + 1 + 10, 9 + 3 + 3)
    with frozen(victim._classifier):
        attack.run(victim, images, labels, ThreatModel("linf", 0.5))
    assert victim.forwards.tolist() == [told.forward] * 10
    assert victim.backwards.tolist() == [told.backward] * 10
    assert FMN(steps=9).passes(2) == FMN(steps=9, classes=1).passes(2)


def test_the_command_shows_median_and_curve(tmp_path, capsys):
    record = run(tmp_path)
    median = f"{record.distances.median:.4g}"
    _, shown, _ = call(capsys, "show", str(tmp_path / f"{record.stem}.json"))
    line = next(one for one in shown.splitlines() if "nearest broken point" in one)
    robust = 100 * record.metrics.adversarial.mean.value
    assert f"median {median}" in line and "40 of 40 images" in line
    assert f"{robust:.1f} at 0.01" in line and "at 0.0025" in line and "at 0.04" in line
    _, told, _ = call(capsys, "show", "--json", str(tmp_path / f"{record.stem}.json"))
    assert f'"median": {record.distances.median}' in told


def test_other_attacks_measure_none(tmp_path):
    record = run(tmp_path, "pgd:steps=2")
    assert record.distances is None


def test_points_and_distances_of_an_unbreakable_image():
    """In a box, an image of a class that no pixel can leave."""
    model, images, labels = linear_problem(2, 5, active_box=False)
    with torch.no_grad():
        model.bias += torch.tensor([1e4, 0.0])
    labels = torch.zeros(5, dtype=torch.int64)
    victim = Victim(classifier(model, 2), np.arange(5))
    with frozen(victim._classifier):
        output = FMN(steps=5).run(victim, images, labels, ThreatModel("linf", 0.1))
    assert torch.isinf(output.distances).all()
    assert ThreatModel("linf", 0.1).contains(output.points, images).all()
