"""Attack and judge on one shard."""

from safetensors.numpy import load_file
from torch import nn

import bench
from tests import toy_model
from tests.helpers import run_toys
from tests.toy_plugins import Toy


def test_an_image_that_is_wrong_under_its_fixed_noise_stays_broken_under_replay(tmp_path):
    """Whatever the attack makes of it: the attacked function is fixed, so the deterministic rule
    holds.
    """
    record = run_toys(tmp_path, attacks=("toy-lower+replay",), eps=0.3)[-1]
    null = run_toys(tmp_path, attacks=("null+replay",), eps=0.3)[-1]
    wrong_on_fixed_noise = ~null.outcomes.correct("replayed")[:, 0]
    assert 5 < wrong_on_fixed_noise.sum() < 100
    assert not record.outcomes.correct("replayed")[wrong_on_fixed_noise].any()
    assert record.metrics.replayed.mean.value <= null.metrics.replayed.mean.value
    points = load_file(tmp_path / record.points.file)["points"]
    assert (
        points[wrong_on_fixed_noise]
        == Toy(Toy.Params(n=150)).test().images.numpy()[wrong_on_fixed_noise]
    ).all()


def test_a_shard_without_a_right_image_is_not_attacked():
    class Wrong(nn.Module):
        def forward(self, images):
            return -toy_model.make_model()(images.view(images.size(0), 1, 4, 4))

    for attack in ("pgd", "noise"):
        (record,) = bench.evaluate(
            Wrong(), dataset="toy:n=3", attacks=attack, norm="l2", eps=0.1, device="cpu"
        ).records
        assert record.cost.attack_forwards == 0 and record.metrics.adversarial.mean.value == 0
