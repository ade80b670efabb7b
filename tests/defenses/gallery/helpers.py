"""What tests of the known answers share."""

import torch
from torch import nn
from torch.nn import functional as F

from bench.defense import DataAccess, Need
from bench.models.classifier import Classifier
from bench.noise import BuildNoise, Noise, Stream, isolated
from bench.plugins.create import DEFENSES, create
from bench.spec import parse
from bench.threat import ThreatModel

NAMES = sorted(
    name
    for name in DEFENSES.names()
    if not name.startswith("toy-") and DEFENSES.get(name).card.expected
)


class Net(nn.Module):
    """A small network with activations as modules, in place, and as functions."""

    def __init__(self, channels=1):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(channels, 8, 3)
        self.second = nn.Linear(8, 10)
        self.relu = nn.ReLU(inplace=True)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, x):
        maps = F.relu(self.relu(self.first(x)) - 0.1)
        return self.second(maps.mean((2, 3)).relu())


def net(channels=1):
    with isolated(0):
        return Net(channels)


def linear(*sizes):
    with isolated(0):
        return nn.Linear(*sizes)


def pixels(n, *shape, seed=0):
    return torch.rand(n, *(shape or (1, 12, 12)), generator=torch.Generator().manual_seed(seed))


def noise(n, draw=0):
    return Noise.of(0, Stream.EVAL, range(n), draw)


def build(text, network=None, channels=1):
    defense = create(DEFENSES, parse(text)).plugin
    images = pixels(20, channels, 12, 12)
    sources = {Need.TRAINING_DATA: lambda: (images, torch.arange(20) % 10)}
    access = DataAccess(
        frozenset(defense.needs), sources, text, ThreatModel("linf", 0.1), tuple(images.shape[1:])
    )
    classifier = Classifier(network or net(channels), 10).eval()
    return defense.build(classifier, access, BuildNoise(0)).eval()


def slope(defended, images, gradient):
    leaf = images.clone().requires_grad_(True)
    output = defended.forward_pass(gradient)(leaf, noise(len(images)))
    if not output.requires_grad:
        return torch.zeros_like(images)
    derivative = torch.autograd.grad((output * torch.arange(10.0)).sum(), leaf, allow_unused=True)[
        0
    ]
    return torch.zeros_like(images) if derivative is None else derivative
