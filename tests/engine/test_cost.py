"""What an evaluation will cost: counted passes, and a calibration under a clock of the test's."""

import pytest
import torch

from bench.attack import Passes
from bench.defense import DefendedClassifier, Defense
from bench.engine import cost
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.plugins.create import DEFENSES
from bench.storage.artifacts import artifact, cache_root
from tests.helpers import toy_request


class Clocked(DefendedClassifier):
    """Takes 0.01 s an image, and 0.03 s more where a gradient is asked for."""

    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.now, self.batches = 0.0, []

    def forward(self, images, noise):
        self.batches.append(len(images))
        self.now += len(images) * (0.04 if images.requires_grad else 0.01)
        return images.flatten(1)[:, :3] * 2


@DEFENSES.register("toy-long-training")
class Trained(Defense):
    """Would be trained for long."""

    def build(self, classifier, access, noise):
        artifact("toy-networks", {"n": 1}, lambda _: pytest.fail("it was trained"))
        return classifier


def test_passes_are_those_of_the_attack_the_judge_and_the_check():
    request = toy_request(defenses=("toy-jitter",), attacks=("pgd:steps=5",), randomness="eot:k=4")
    base, row = plan(request)
    assert cost.passes_of(base) == Passes(6 + 2 + 1, 5)
    assert cost.passes_of(row) == Passes(4 * 6 + 2 * row.judged_draws + 1, 4 * 5)
    told = cost.cost(row, cost.Pace(0.5, 2.0, flops=cost.GPU_FLOPS))
    assert told.total == cost.passes_of(row) * len(row.setup.images)
    assert told.seconds == 0.5 * told.total.forward + 2.0 * told.total.backward
    assert told.gpu_hours == pytest.approx(told.total.total / 3600)


@pytest.mark.parametrize(("seconds", "largest"), [(0.02, 1), (1.0, 8), (60.0, 16)])
def test_a_calibration_keeps_to_its_time_and_fills_the_batch(monkeypatch, seconds, largest):
    slow = Clocked()
    monkeypatch.setattr(cost, "perf_counter", lambda: slow.now)
    pace = cost.calibrate(slow, torch.full((16, 1, 2, 2), 0.5), seconds=seconds)
    assert (pace.forward, pace.backward) == (pytest.approx(0.01), pytest.approx(0.03))
    assert max(slow.batches) == largest and slow.now <= max(seconds, 0.11) + 1e-9


def test_what_must_be_trained_is_not():
    request = toy_request(defenses=("toy-long-training", "toy-jitter"), n=4)
    evaluations = plan(request)
    paces = cost.paces(evaluations, Execution())
    built = {one.defense.name: paces[one.id].built for one in evaluations}
    assert built == {"undefended": True, "toy-long-training": False, "toy-jitter": True}
    assert not (cache_root() / "toy-networks").exists()
    assert all(pace.flops and pace.forward > 0 for pace in paces.values())
