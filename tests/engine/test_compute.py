"""Attack and judge on one shard."""

import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import bench
from bench.attack import Attack
from bench.randomness import Query
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


class LooksAtBase(Attack):
    """Keeps what the base says of the clean images, and changes nothing."""

    said: list

    def run(self, victim, images, labels, threat):
        self.said.append(victim.logits(images, torch.arange(len(images)), Query(), "base")[:, 0])
        return images


@pytest.mark.parametrize("defenses", ["undefended", "constant"])
def test_an_attack_may_ask_the_base_of_a_defense(defenses):
    LooksAtBase.said = []
    model = toy_model.make_model()
    report = bench.evaluate(
        model, dataset="toy:n=6", defenses=defenses, attacks=[LooksAtBase], device="cpu"
    )
    images = Toy(Toy.Params(n=6)).test().pixels()
    assert all(
        any(torch.allclose(row, one, atol=1e-6) for one in model(images))
        for said in LooksAtBase.said
        for row in said
    )
    assert report.records[-1].cost.max_attack_forwards == 2


def test_a_module_without_a_base_refuses_its_view():
    LooksAtBase.said = []
    module = bench.ModuleDefense(toy_model.make_model(), name="mine")
    with pytest.raises(bench.BadInput, match="'base'"):
        bench.evaluate(dataset="toy:n=6", defenses=[module], attacks=[LooksAtBase], device="cpu")
    assert not LooksAtBase.said
