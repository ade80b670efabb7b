"""Steps on the networks inside a defense: which are found, what they reach, what they cost."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.noise import isolated
from bench.randomness import Query, read_randomness
from bench.searches import inner_steps
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.toys import Around, NoisyLinear, classifier, exact_distance, linear_problem

N = 20


@pytest.fixture(scope="module", params=["linf", "l2", "l1"])
def problem(request):
    model, images, labels = linear_problem(3, N, active_box=True)
    distance = exact_distance(model, images, labels, request.param)
    return model, images, labels, ThreatModel(request.param, float(np.median(distance))), distance


def one_hot(net, x):
    return nn.functional.one_hot(net(x).argmax(1), 3).float()


def decoy(net, x):
    """Another call of the network, which answers otherwise, comes last."""
    value = one_hot(net, x)
    return value + 0 * net(1 - x.flip(2))


def detached(net, x):
    return net(x.detach()).detach()


def enlarged(net, x):
    big = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return Half(net)(big)


class Half(nn.Module):
    """Takes images of twice the size; its own pooling is part of the network."""

    def __init__(self, inner):
        super().__init__()
        self.inner = lambda x: nn.functional.linear(x.flatten(1), inner.weight, inner.bias)

    def forward(self, x):
        return self.inner(nn.functional.avg_pool2d(x, 2))


def searched(module, problem, steps=40, **more):
    _, images, labels, threat, _ = problem
    defended = module if isinstance(module, NoisyLinear) else classifier(module, 3)
    with frozen(defended):
        victim = Victim(defended, np.arange(N), **more)
        return inner_steps(victim, images, labels, torch.arange(N), threat, steps=steps), victim


@pytest.mark.parametrize("answer", [one_hot, decoy, detached, enlarged])
def test_nothing_around_a_network_stops_it(problem, answer):
    model, images, labels, threat, distance = problem
    module = Around(model, answer)
    result, victim = searched(module, problem)
    success = result.success.numpy()
    assert success[distance < 0.95 * threat.eps].all()
    assert not (success & (distance > 1.0001 * threat.eps)).any()
    assert threat.contains(result.points, images).all()
    with torch.no_grad():
        answers = module(result.points).argmax(1)
    assert torch.equal(answers != labels, result.success)
    left = ~result.success
    assert int(victim.forwards[left].max()) <= 41 + 40 and int(victim.backwards[left].max()) <= 40


def test_a_network_that_answers_otherwise_is_none(problem):
    """Its answers are never the defense's: nothing speaks for it, and the search ends."""
    _, images, labels, threat, _ = problem
    module = Around(problem[0], lambda net, x: -net(x).roll(1, 1))
    tiny = ThreatModel(threat.norm, 1e-4)
    with torch.no_grad():
        own, inside = module(images).argmax(1), problem[0](images).argmax(1)
    differing = (own != inside).nonzero().squeeze(1)
    defended = classifier(module, 3)
    with frozen(defended):
        victim = Victim(defended, np.arange(N))
        result = inner_steps(victim, images, own, differing, tiny, steps=5)
    assert len(differing) and not result.success.any()
    assert not victim.backwards.any() and int(victim.forwards.max()) == 1


def test_no_generator_moves_and_no_hook_stays(problem):
    noisy = NoisyLinear(problem[0], 0.05)
    with isolated(3):
        before = torch.get_rng_state()
        searched(noisy, problem, randomness=read_randomness("replay"))
        assert torch.equal(before, torch.get_rng_state())
    hooks = nn.modules.module
    assert not hooks._global_forward_hooks and not hooks._global_forward_pre_hooks


def test_fixed_noise_is_that_of_the_judge(problem):
    _, images, labels, _, distance = problem
    noisy = NoisyLinear(problem[0], 0.05)
    result, victim = searched(noisy, problem, randomness=read_randomness("replay"))
    with frozen(noisy):
        rows = torch.arange(N)
        answers = victim.logits(result.points, rows, Query())[:, 0].argmax(1)
    assert torch.equal(answers != labels, result.success) and result.success.any()
