"""k-winners-take-all."""

import torch
from bench_defenses.gallery.k_wta import winners
from torch import nn

from bench.models.classifier import Classifier
from tests.defenses.gallery.helpers import build, linear, pixels, slope


def test_winners_by_sorting():
    values = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    outputs = winners(values, 0.1)
    for row, kept in zip(values.flatten(1), outputs.flatten(1), strict=True):
        best = set(row.sort(descending=True).indices[:6].tolist())
        assert kept.tolist() == [float(v) if i in best else 0 for i, v in enumerate(row)]


def test_the_surrogate_of_winners_is_the_activation():
    images = pixels(4)
    single = nn.Sequential(nn.Flatten(), linear(144, 10), nn.ReLU())
    with torch.no_grad():
        single[1].weight.copy_(pixels(10, 144, seed=4).reshape(10, 144) - 0.5)
    plain = slope(Classifier(single, 10), images, "full")
    assert torch.allclose(slope(build("k-wta:gamma=0.2,epochs=0", single), images, "bpda"), plain)
    assert not torch.allclose(
        slope(build("k-wta:gamma=0.2,epochs=0", single), images, "full"), plain
    )
