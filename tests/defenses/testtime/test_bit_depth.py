"""Bit-depth reduction."""

import pytest
import torch

from tests.defenses.helpers import around_sum, noise


@pytest.mark.parametrize("bits", [1, 3, 7, 8])
def test_bit_depth_keeps_the_top_bits_of_every_level(bits):
    levels = torch.arange(256, dtype=torch.uint8)
    images = (levels.float() / 255).reshape(1, 1, 16, 16)
    shift = 8 - bits
    expected = ((levels.int() >> shift) << shift).float() / 255
    defended = around_sum(f"bit-depth:bits={bits}")
    assert torch.allclose(defended.transform(images, noise(1)).flatten(), expected, atol=1e-7)
    assert not defended.stochastic
