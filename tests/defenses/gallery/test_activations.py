"""Activations inside any network."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.errors import BadInput
from bench.models.classifier import Classifier
from tests.defenses.gallery.helpers import build, linear, net, noise, pixels


def test_every_kind_of_activation_is_met_and_left_alone_afterwards():
    images = pixels(3)
    network = net()
    plain = Classifier(network, 10).eval()
    before = plain(images, noise(3))
    one = build("k-wta:gamma=1,epochs=0", network)
    by_hand = network.second((network.first(images) - 0.1).mean((2, 3)))
    assert torch.allclose(one(images, noise(3)), by_hand, atol=1e-5), (
        "all winners: no activation at all is left"
    )
    assert torch.equal(plain(images, noise(3)), before)


class Sites(nn.Module):
    def forward(self, x):
        x = x.flatten(1)[:, :10]
        return (
            torch.relu(x + 1)
            + F.leaky_relu(x + 2, 0.2)
            + F.gelu(x + 3)
            + nn.SiLU()(x + 4)
            + nn.ELU()(x + 5)
        )


def test_functions_of_every_name_are_replaced():
    images = pixels(2)
    expected = 5 * images.flatten(1)[:, :10] + 15
    assert torch.allclose(
        build("k-wta:gamma=1,epochs=0", Sites())(images, noise(2)), expected, atol=1e-5
    )


@pytest.mark.parametrize("name", ["sap", "k-wta:epochs=0"])
def test_a_network_without_activations_is_bad_input(name):
    network = nn.Sequential(nn.Flatten(), linear(144, 10))
    with pytest.raises(BadInput, match="no activation was met"):
        build(name, network)(pixels(2), noise(2))


def test_layers_draw_apart():
    class Twice(nn.Module):
        def forward(self, x):
            return torch.stack([F.relu(x.flatten(1)), F.relu(x.flatten(1))], 1).flatten(1)[:, :288]

    defended = build("sap:samples=0.5", Twice())
    outputs = defended(pixels(2), noise(2)).reshape(2, 2, 144)
    assert not torch.equal(outputs[:, 0], outputs[:, 1])
