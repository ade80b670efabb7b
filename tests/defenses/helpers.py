"""What tests of defenses share."""

import torch
from torch import nn

from bench.defense import DataAccess
from bench.models.classifier import Classifier
from bench.noise import BuildNoise, Noise, Stream
from bench.plugins.create import DEFENSES, create
from bench.spec import parse
from bench.threat import ThreatModel

THREAT, SHAPE = ThreatModel("linf", 0.1), (1, 16, 16)


class Sum(nn.Module):
    """Two logits from an image of any size."""

    def forward(self, images):
        total = images.flatten(1).sum(1)
        return torch.stack([total, -total], 1)


def around_sum(text: str):
    defense = create(DEFENSES, parse(text)).plugin
    access = DataAccess(frozenset(defense.needs), {}, text, THREAT, SHAPE)
    return defense.build(Classifier(Sum(), 2).eval(), access, BuildNoise(0))


def noise(n, draw=0):
    return Noise.of(0, Stream.EVAL, range(n), draw)
