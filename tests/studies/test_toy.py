"""The study `toy`."""

import pytest
import torch

from bench.studies import toy
from bench.studies.study import StudySetting
from tests.studies.helpers import answer


def test_the_toy_counts_more_strays_under_drawn_coefficients():
    same = (
        "images=256,synthesis_batch=32,iterations=100,targets=per_batch,space=normalised,keep=last"
    )
    result = answer(
        f"toy:repeats=1,defenses=(datafreeshield:{same},coefficients=fixed)+(datafreeshield:"
        f"{same})",
        StudySetting(),
    )
    fixed, drawn = result.tables["toy"].to_dict("records")
    assert (
        drawn["wrong_0"] + drawn["wrong_1"] > fixed["wrong_0"] + fixed["wrong_1"]
        and fixed["of"] == 128
    )
    assert all(0 < row["coverage"] < 0.5 and 0 < row["distance"] < 1 for row in (fixed, drawn))
    assert set(result.figures) == {"points"} and "coverage" in result.sentence


def test_moons_lie_in_the_middle_and_are_learned():
    noise = toy.BuildNoise(0)
    real, labels = toy.moons(noise)
    assert real.shape == (2000, 2, 1, 1) and bool(((real > 0.15) & (real < 0.85)).all())
    upper = real[labels == 0][:, :, 0, 0]
    # Radius 1 about (0, 0), which lies at (0.5 - 0.5 / 6, 0.5 - 0.25 / 6).
    radius = 6 * torch.linalg.vector_norm(
        upper - torch.tensor([0.5 - 0.5 / 6, 0.5 - 0.25 / 6]), dim=1
    )
    assert float(radius.mean()) == pytest.approx(1, abs=0.02) and float(
        radius.std()
    ) == pytest.approx(0.1, abs=0.01)
    classifier = toy.learned(real, labels, noise)
    assert float((toy.answers_of(classifier, real) == labels).float().mean()) > 0.98
