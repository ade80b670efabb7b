"""Stochastic activation pruning."""

import torch
from bench_defenses.gallery.sap import prune

from bench.noise import Noise, Stream


def test_pruning_keeps_with_the_published_probability_and_is_unbiased():
    activations = torch.tensor([[0.0, 1.0, 2.0, 5.0, 0.5], [0, 0, 0, 0, 0]]).repeat(4000, 1)
    draws = 4
    pruned = prune(activations, draws, Noise.of(0, Stream.EVAL, range(8000)))
    share = activations[0] / activations[0].sum()
    expected = 1 - (1 - share) ** draws
    kept = (pruned[0::2] > 0).float().mean(0)
    assert (kept - expected).abs().max() < 0.04
    assert torch.allclose(pruned[0::2].mean(0), activations[0], rtol=0.08)
    assert (pruned[1::2] == 0).all()
