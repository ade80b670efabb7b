"""Tests of `median-smoothing`: the contract of every defense, and a known answer of its own."""

import torch

from bench import DefenseContract, Noise, Stream
from median_smoothing import MedianSmoothing


class TestMedianSmoothing(DefenseContract):
    """Every check of the contract, each a test of its own; `bench check` runs the same ones."""

    defense = MedianSmoothing

    def test_a_lone_bright_pixel_vanishes(self) -> None:
        """The median of nine pixels, eight of them black, is black."""
        images = torch.zeros(1, 3, 16, 16)
        images[:, :, 4, 4] = 1.0
        transform = self.built().forward_pass("full", "transformed")
        assert not transform(images, Noise.of(0, Stream.EVAL, [0])).any()
