"""What a defense cannot work with is told when it is planned, before its base runs."""

import pytest
import torch
from torch import nn

import bench
from bench.noise import isolated
from tests import toy_model, toy_plugins  # noqa: F401
from tests.toys import message


class Tanh(nn.Module):
    """Three logits that no linear layer gives last."""

    def __init__(self):
        super().__init__()
        with isolated(0):
            self.head = nn.Linear(16, 3)

    def forward(self, images):
        return torch.tanh(self.head(images.flatten(1)))


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = toy_model.make_model()

    def forward(self, images):
        return self.inner(images + 0.1 * torch.randn_like(images))


@pytest.mark.parametrize(
    ("defense", "model", "words"),
    [
        ("constant:label=10", toy_model.make_model, "label=10"),
        ("diffpure:model=(gaussian:channels=3,side=4)", toy_model.make_model, "for 3 channels"),
        ("diffpure:model=(gaussian:channels=1,side=8)", toy_model.make_model, "resize=true"),
        ("dad", Tanh, "does not end in one"),
        ("sap", Random, "one pass"),
        ("dfard", toy_model.make_model, "no BatchNorm layer"),
        ("dast", Random, "deterministic classifier"),
        ("datafreeshield", toy_model.make_model, "no BatchNorm layer"),
        ("datafreeshield", Random, "deterministic classifier"),
    ],
)
def test_what_a_defense_cannot_work_with_is_told_before_its_base_runs(
    monkeypatch, defense, model, words
):
    monkeypatch.setattr("bench.api.run_evaluations", lambda *_: pytest.fail("something ran"))

    def evaluate():
        bench.evaluate(model(), dataset="toy:n=6", defenses=defense, attacks="null", device="cpu")

    assert words in message(evaluate)
