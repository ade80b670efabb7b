"""What tests of the test-time defenses share."""

import math

import numpy as np
import torch
from torch import nn

from bench.defense import DataAccess, Need
from bench.models.classifier import Classifier
from bench.noise import BuildNoise, Noise, Stream, isolated
from bench.plugins.create import DEFENSES, create
from bench.spec import parse
from bench.threat import ThreatModel

THREAT = ThreatModel("linf", 0.1)


def pixels(n, *shape, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def noise(n, draw=0):
    return Noise.of(0, Stream.EVAL, range(n), draw)


def network(classes, shape, seed=0, width=24):
    """Weights of unit scale on average, so that answers differ between images."""
    generator = torch.Generator().manual_seed(seed)
    with isolated(0):
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(shape), width), nn.Tanh(), nn.Linear(width, classes)
        )
    for parameter in net.parameters():
        parameter.data = (
            torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5 * 3
        )
    return Classifier(net, classes).eval()


def build(text, classifier, shape, pool=None):
    defense = create(DEFENSES, parse(text)).plugin
    sources = {} if pool is None else {Need.UNLABELLED_TEST: lambda: lambda n, share: pool[:n]}
    access = DataAccess(frozenset(defense.needs), sources, text, THREAT, shape)
    return defense.build(classifier, access, BuildNoise(0)).eval()


def slow_ssim(a, b, span):
    """One image (C, H, W), window by window."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    channels = []
    for x, y in zip(a.numpy().astype(float), b.numpy().astype(float), strict=True):
        values = []
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq, both = (
                    (w * p * p).sum() - mp**2,
                    (w * q * q).sum() - mq**2,
                    (w * p * q).sum() - mp * mq,
                )
                values.append(
                    (2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
                )
        channels.append(max(0.0, float(np.mean(values))))
    return float(np.mean(channels))
