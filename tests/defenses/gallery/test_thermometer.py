"""Thermometer encoding."""

import numpy as np
import pytest
import torch

from tests.defenses.gallery.helpers import build, noise


def test_thermometer_by_loops():
    images = torch.tensor([0.0, 1 / 8, 0.125001, 0.5, 0.99, 1.0, 0.26, 0.74]).reshape(2, 2, 1, 2)
    defended = build("thermometer:levels=4,epochs=1", channels=2)
    outputs, smooth = defended.transform(images, noise(2)), defended.surrogate(images, noise(2))
    assert outputs.shape == smooth.shape == (2, 8, 1, 2)
    for i, c, level, x in np.ndindex(2, 2, 4, 2):
        value = float(images[i, c, 0, x])
        assert outputs[i, c * 4 + level, 0, x] == (1 if value > level / 4 else 0)
        assert smooth[i, c * 4 + level, 0, x] == pytest.approx(
            min(max(value - level / 4, 0), 1), abs=1e-6
        )
