"""The Python interface."""

import pytest
from torch import nn

import bench
from bench.noise import generators
from tests import toy_model, toy_plugins  # noqa: F401


class Dropout(nn.Module):
    """An opaque stochastic model: dropout in its forward pass, drawn from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = toy_model.make_model()

    def forward(self, images):
        return self.inner(nn.functional.dropout(images, 0.3, training=True))


def test_evaluate_controls_an_opaque_stochastic_model():
    before = generators()
    attacks = ["pgd:steps=3", "pgd+replay:steps=3"]
    reports = [
        bench.evaluate(
            Dropout(), dataset="toy:n=30", attacks=attacks, device="cpu", batch_size=size, seeds=[5]
        )
        for size in (7, 64)
    ]
    assert generators() == before
    first, second = (report.records for report in reports)
    assert [r.replay_level for r in first] == ["process", "process"]
    assert all(r.stochastic and len(r.outcomes.adversarial) == 20 for r in first)
    assert [r.outcomes for r in first] == [r.outcomes for r in second]
    assert first[1].outcomes.replayed
    assert len(set(first[0].outcomes.clean)) > 10, "draws differ"
    assert "replayed" in str(reports[0])


@pytest.mark.parametrize(
    "arguments",
    [
        {"eps": "1/0"},
        {"eps": True},
        {"seeds": 5.5},
        {"seeds": [-1]},
        {"seeds": [2**70]},
        {"seeds": []},
        {"n": 2.5},
        {"attacks": [None]},
        {"attacks": []},
        {"batch_size": "x"},
        {"output": "x"},
        {"gradient": ""},
        {"device": "tpu"},
    ],
)
def test_evaluate_refuses_what_the_command_refuses(arguments):
    with pytest.raises(bench.BadInput) as error:
        bench.evaluate(
            toy_model.make_model(),
            **{"dataset": "toy:n=5", "attacks": "null", "device": "cpu", **arguments},
        )
    assert "\n" not in str(error.value)


def test_evaluate_wants_a_module():
    with pytest.raises(bench.BadInput, match="give the module itself"):
        bench.evaluate(toy_model.make_model, dataset="toy:n=5")
