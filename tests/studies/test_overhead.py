"""The study `overhead`."""

import pytest
import torch

from bench.studies import gradients, overhead
from bench.studies.deployed import deploy
from tests.studies.helpers import DIFFPURE, MODEL, answer, purifier_setting


@pytest.mark.parametrize(
    ("spec", "rounds"),
    [
        ("diffpure:t=100,steps=6", 1),
        ("revpure:t=100,steps=6", 1),
        ("diffpure:t=100,steps=6,rounds=2", 2),
    ],
)
def test_passes_through_the_network_are_counted_exactly(spec, rounds):
    result = answer(f"overhead:repeats=1,defenses=({spec},{MODEL})")
    counts = result.tables["gradients"].set_index("gradient")
    expected = {
        "full": (6, 6),
        overhead.CHECKPOINTED: (12, 6),
        "bpda": (6, 0),
        "surrogate": (3, 3),
        "blind": (0, 0),
    }
    for name, (forwards, backwards) in expected.items():
        row = counts.loc[name]
        assert (row["forwards"], row["backwards"]) == (rounds * forwards, rounds * backwards), name
        assert row["forward_equivalents"] == rounds * (forwards + backwards)
    (costs,) = result.tables["inference"].to_dict("records")
    assert costs["evaluations"] == 6 * rounds and costs["share_of_generation"] == pytest.approx(
        0.1 * rounds
    )
    assert costs["latency_ratio"] == pytest.approx(
        1 + costs["purification_seconds"] / costs["classifier_seconds"]
    )


def test_counting_leaves_no_trace():
    (one,) = deploy(purifier_setting(), [DIFFPURE[1:-1]])
    before = gradients.input_gradient(one, one.images, "full", 0)
    with overhead.counted(one.classifier) as calls:
        assert torch.equal(gradients.input_gradient(one, one.images, "full", 0), before)
    assert (calls.forwards, calls.backwards) == (48, 48)
    gradients.input_gradient(one, one.images, "full", 0)
    assert calls.forwards == 48
