"""Adversarial training on the training images."""

import numpy as np
import pytest
import torch
from bench_defenses.adversarial import public_at, training_data
from bench_defenses.adversarial.objectives import objective_name

from bench.engine.build import build
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import run_evaluations
from bench.results.store import Store
from bench.testing import DefenseContract
from tests.defenses.adversarial.helpers import QUICK, evaluations


class TestPgdAt(DefenseContract):
    defense = f"pgd-at:{QUICK}"


class TestTrades(DefenseContract):
    defense = f"trades:{QUICK},checkpoint=best"


class TestMart(DefenseContract):
    defense = f"mart:{QUICK},group=2"


class TestArd(DefenseContract):
    defense = f"ard:{QUICK},bn=frozen"


class TestRslad(DefenseContract):
    defense = f"rslad:{QUICK},from_scratch=true"


class TestDfShieldAt(DefenseContract):
    defense = f"dfshield-at:{QUICK}"


def test_each_defense_trains_by_its_own_objective(setup, monkeypatch):
    names = []
    monkeypatch.setattr(
        training_data,
        "trained_student",
        lambda student, training, *_: names.append(objective_name(training.objective)) or student,
    )
    for defense in ("pgd-at", "trades", "mart", "ard", "rslad", "dfshield-at"):
        build(evaluations(setup, f"{defense}:scale=smoke")[0], torch.device("cpu"))
    assert names == ["pgd-at", "trades", "mart", "ard", "rslad", "datafreeshield"]


def test_how_many_images_a_student_sees(setup, monkeypatch, tmp_path):
    counts = []
    for module in (training_data, public_at):
        monkeypatch.setattr(
            module,
            "trained_student",
            lambda student, training, *_: counts.append(len(training.images.images)) or student,
        )
    archive = tmp_path / "public.npz"
    np.savez(archive, x_test=np.zeros((250, 8, 8), dtype=np.uint8), y_test=np.arange(250) % 2)
    public = [
        f"public-at:images=({text}),scale=smoke"
        for text in (f"npz:{archive}", f"npz:{archive},n=210")
    ]
    for defense in (
        "pgd-at:scale=smoke",
        "pgd-at:scale=smoke,n=300",
        "pgd-at:scale=full",
        *public,
    ):
        build(evaluations(setup, defense)[0], torch.device("cpu"))
    assert counts == [200, 300, 4000, 200, 210]


@pytest.mark.slow
def test_training_on_mnist5k_keeps_most_images_right(tmp_path):
    base, trained = plan(Request(defenses=("pgd-at",), attacks=("pgd",), n=200))
    for evaluation, low, high in ((base, 0, 0.05), (trained, 0.8, 1)):
        (result,) = run_evaluations([evaluation], Store(tmp_path), Execution())
        assert low <= result.record.metrics.adversarial.mean.value <= high
