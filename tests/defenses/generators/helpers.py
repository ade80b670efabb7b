"""What tests of the generators share."""

import copy
from dataclasses import replace

import torch
from bench_defenses.adversarial.training_step import Descent
from bench_defenses.generators.loop import PairSchedule, Plan, train_pair
from bench_defenses.generators.methods import METHODS

from bench.noise import BuildNoise, Noise, Stream
from bench.threat import ThreatModel

SHAPE = (3, 16, 16)


THREAT = ThreatModel("linf", 0.05)


SMALL = {"size": 8, "width": 8}


def noise(seed=0, rows=1):
    return Noise.of(seed, Stream.BUILD, range(rows))


def plan_of(name, *, adversarial=None, steps=2, descent=None, schedule=None, **changes):
    method = METHODS[name]
    weights = {} if adversarial is None else {"adversarial": adversarial, "clean": 1.0}
    plan = Plan(
        generator=replace(method.generator, **SMALL),
        terms=method.terms,
        objective=method.objective(**weights),
        descent=replace(descent or Descent(rate=0.01), steps=steps),
        schedule=replace(
            PairSchedule(10, 6, method.ratio, method.shared, warmup=2, momentum=method.momentum),
            **(schedule or {}),
        ),
        threat=THREAT,
        shape=SHAPE,
        batchnorm_mode=method.batchnorm_mode,
    )
    return replace(plan, **changes)


def train(teacher, name, plan=None, student=None, seed=0, **options):
    student = student or copy.deepcopy(teacher)
    plan = plan or plan_of(name)
    return train_pair(
        student, teacher, plan, METHODS[name].adaptation(plan.terms), BuildNoise(seed), **options
    )


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


TEACHER = torch.tensor([[3.0, -1.0, 0.0], [-0.5, 0.8, 0.6]], dtype=torch.float64)


STUDENT = torch.tensor([[2.0, 0.5, -1.0], [0.1, 1.2, 0.3]], dtype=torch.float64)


OTHER = torch.tensor([[0.4, 0.9, -0.2], [1.5, 0.2, -0.7]], dtype=torch.float64)


def other_student(teacher):
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.network.head.weight += 0.1 * torch.randn(
            student.network.head.weight.shape, generator=torch.Generator().manual_seed(0)
        )
    return student.requires_grad_(False)
