"""Networks by name or as a list of layers."""

import pytest
import torch
from torch.nn import functional as F

from bench.models.nets import ARCHITECTURES, build
from tests.models.helpers import LAYERS, count
from tests.toys import message


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("resnet20", 269_722),
        ("resnet20-projection", 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),
        ("resnet56", 853_018),
        ("resnet56-projection", 853_018 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),
        ("cnn", 33_338 + 2 * 16 * 9),
        ("resnet18", 11_173_962),
        ("resnet50", 23_520_842),
        ("resnet110-projection", 1_730_714),
        ("wrn16-10", 17_116_634),
        ("wrn28-10", 36_479_194),
        ("wrn40-8", 35_748_314),
    ],
)
def test_parameter_counts(arch, parameters):
    assert count(build(arch, 10, 3)) == parameters


@pytest.mark.parametrize(
    ("arch", "width"),
    [
        ("cnn", 64),
        ("resnet20", 64),
        ("resnet20-projection", 64),
        ("resnet18", 512),
        ("resnet50", 2048),
        ("wrn16-4", 256),
    ],
)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 9, 14)])
def test_features_and_logits(arch, width, shape):
    network = build(arch, 7, shape[0]).eval()
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    assert network.features(images).shape == (2, width)
    assert torch.equal(network(images), network.linear(network.features(images)))
    assert network(images).shape == (2, 7)


def test_layer_list():
    network = build(LAYERS, 3, 1)
    assert sorted(network.state_dict()) == [
        f"{i}.{kind}" for i in (0, 3, 5) for kind in ("bias", "weight")
    ]
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert network.features(images).shape == (2, 5)
    assert torch.equal(network(images), network[5](network.features(images)))


def test_layer_list_with_pools_and_a_residual_sum():
    layers = [
        ["conv", 1, 4, 3, 1, 1],
        ["relu"],
        ["conv", 4, 4, 3, 1, 1],
        ["bn", 4],
        ["add", 1],
        ["pool", 2],
        ["avgpool", 3, 2, 1],
        ["avgpool"],
        ["flat"],
        ["lin", 4, 3],
    ]
    network = build(layers, 3, 1).eval()
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first = F.relu(network[0](images))
    total = network[3](network[2](first)) + first
    maps = F.avg_pool2d(F.max_pool2d(total, 2), 3, 2, 1)
    assert torch.equal(network(images), network[9](maps.mean((2, 3))))
    assert torch.equal(network[9](network.features(images)), network(images))


@pytest.mark.parametrize("depth", [8, 14, 20, 26, 32, 44, 56, 110])
@pytest.mark.parametrize("shortcut", ["", "-projection"])
def test_cifar_resnets_have_their_depth(depth, shortcut):
    """He et al. 2016, section 4.2: 6 n + 2 layers with weights."""
    network = build(f"resnet{depth}{shortcut}", 10, 3)
    kinds = [
        layer
        for name, layer in network.named_modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and "shortcut" not in name
    ]
    assert len(kinds) == depth
    shortcuts = [name for name in network.state_dict() if "shortcut" in name]
    assert bool(shortcuts) == bool(shortcut)


def test_build_depends_on_its_seed_only():
    one, same, other = (build("cnn", 10, 1, seed).linear.weight for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_bad_architectures():
    assert "resnet20" in message(lambda: build("resnet-20", 10, 3))
    assert "unknown kind 'gelu'" in message(lambda: build([["gelu", 2]], 3, 1))
    assert "pool takes 1 to 3 sizes" in message(lambda: build([["pool"]], 3, 1))
    assert "comes no earlier" in message(lambda: build([["relu"], ["add", 1], ["lin", 2, 3]], 3, 1))
    assert "layer 0" in message(lambda: build([[]], 3, 1))
    assert "conv takes 5 sizes" in message(lambda: build([["conv", 1, 2]], 3, 1))
    assert "lin takes 2 sizes" in message(lambda: build([["lin", -1, 3]], 3, 1))
    assert "lin takes 2 sizes" in message(lambda: build([["lin", "1", 3]], 3, 1))
    assert "does not end in a linear layer" in message(lambda: build([["relu"]], 3, 1))
    assert "does not end in a linear layer" in message(lambda: build([], 3, 1))
    assert "takes 1 channels, but the images have 3" in message(lambda: build(LAYERS, 3, 3))
    assert "has 3 classes, but the data set has 10" in message(lambda: build(LAYERS, 10, 1))


def test_the_flat_network_knows_places():
    network = build("flat", 10, 3).eval()
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, 16:24, 16:24] = images[1, :, 32:40, 32:40] = 1
    averages = network.body(images).mean((2, 3))
    assert torch.allclose(averages[0], averages[1], atol=1e-6), (
        "a global average forgets where the square is"
    )
    features = network.features(images)
    assert features.shape == (2, 64) and not torch.allclose(features[0], features[1], atol=1e-3)
    assert all(network(torch.zeros(1, 3, side, side)).shape == (1, 10) for side in (12, 25, 28, 32))


def test_all_architectures_are_built_without_moving_generators():
    # The autouse fixture of conftest.py compares the global generators before and after.
    for arch in ARCHITECTURES:
        build(arch, 2, 1)
