"""What tests of adversarial training share."""

import torch
from bench_defenses.adversarial.trainer import (
    Schedule,
)

from bench.engine.plan import plan
from bench.engine.request import Request
from bench.noise import BuildNoise
from bench.threat import ThreatModel

THREAT = ThreatModel("linf", 0.05)


ONCE = Schedule(epochs=1, batch=12, rate=0.02, steps=2)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(seed=0):
    return BuildNoise(seed)


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


QUICK = "scale=smoke,epochs=1,steps=2"


def evaluations(setup, *defenses):
    return [
        evaluation
        for evaluation in plan(Request(defenses=defenses, attacks=("pgd:steps=2",)), setup)
        if evaluation.defense.name != "undefended"
    ]
