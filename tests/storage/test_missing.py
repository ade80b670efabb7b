"""Plans without files: what is declared stands for them, and only while a plan is made."""

import pytest
import torch
from torch import nn

from bench.errors import Missing
from bench.models.sketch import Sketch, operations, sketches
from bench.storage.missing import planning, stand_in
from tests.helpers import call


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5))


def test_only_a_plan_goes_on_without_a_file():
    error = Missing("no such file")
    with pytest.raises(Missing):
        stand_in("one", error, lambda: 1)
    with planning() as plan:
        made = [stand_in("one", error, object) for _ in range(2)]
    assert made[0] is made[1] and plan.missing == ["no such file"]


def test_a_sketch_answers_zeros_and_counts_what_the_network_would_do():
    sketch = Sketch(network, "one")
    images = torch.ones(2, 3, 4, 4, requires_grad=True)
    with operations() as counted:
        answer = sketch(images)
    # Two operations a weight and place: 16 places of 8 x 3 x 9 weights, and 128 x 5 weights.
    assert counted == [2 * 2 * (16 * 8 * 27 + 128 * 5)]
    assert answer.shape == (2, 5) and not answer.any() and answer.requires_grad
    assert sketches(nn.Sequential(sketch)) == [sketch] and not sketches(nn.Sequential())


def test_a_dry_run_without_images_and_weights(capsys, tmp_path):
    command = ["run", "--dataset", "cifar10", "--classifier", "pytorchcv:resnet20_cifar10"]
    command += ["--defense", "undefended", "--attack", "pgd:steps=3", "--n", "100"]
    command += ["--data-root", str(tmp_path), "--out", str(tmp_path / "out"), "--dry-run"]
    code, out, err = call(capsys, *command)
    assert code == 0 and "files missing" in out and "at most 1,000 passes" in out
    # About 40 million products a pass: 1,000 passes of 79 million operations at 20e12 a second.
    assert "1.1e-06 GPU-hours" in out
    named = [line for line in err.splitlines() if "missing: " in line]
    assert len(named) == 2 and "cs.toronto.edu" in named[0] and "resnet20_cifar10" in named[1]
    assert not list(tmp_path.iterdir())
