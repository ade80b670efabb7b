"""The second answers: each cause by a module that has it, and honest ones that have none."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.checks.again import Asking, Cause, answer_again
from bench.models.classifier import Classifier
from bench.noise import isolated
from tests.toys import NoisyLinear, linear_problem


@pytest.fixture(autouse=True)
def own_generators():
    with isolated(0):
        yield


ASKING = Asking(0, 64, torch.device("cpu"))


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


class Neighbours(Around):
    def forward(self, x):
        z = self.inner(x)
        return torch.cat([z[:1], z[1:] + 0.01 * z[:-1]])


class OnlyLarge(Around):
    """Rows see each other in batches of more than two."""

    def forward(self, x):
        z = self.inner(x)
        return z + 0.01 * z.mean(0) if len(x) > 2 else z


class Reads(Around):
    def forward(self, x):
        return self.inner(x) + 0.1 * torch.rand(len(x), 1) * torch.arange(3)


class Counts(Around):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x) * (1 + 0.01 * self.calls)


class Remembers(Around):
    """Answers as it first answered anything."""

    first = None

    def forward(self, x):
        z = self.inner(x)
        if self.first is None:
            self.first = z[:1].detach().clone()
        return z + 0.01 * self.first


class Private(Around):
    """A generator of its own: copies draw the same numbers, in their order."""

    def __init__(self, inner):
        super().__init__(inner)
        self.random = np.random.default_rng(0)

    def forward(self, x):
        return self.inner(x) * (1 + 0.1 * float(self.random.random()))


class Steep(Around):
    """A step of the answer that lies within rounding of an image."""

    def __init__(self, inner, at):
        super().__init__(inner)
        self.at = at

    def forward(self, x):
        # The sum of a batch rounds otherwise than that of an image alone.
        above = (x.flatten(1).double().sum(1) + 2e-9 * (len(x) > 2) > self.at).float()
        return self.inner(x) * (1 + 0.01 * above)[:, None]


@pytest.fixture(scope="module")
def problem():
    return linear_problem(3, 12, active_box=False)


def causes(defended, points, warm=True):
    """Causes of a defense that was judged, after a pass over other images."""
    fresh = copy.deepcopy(defended)
    ids = np.arange(len(points))
    if warm:
        ASKING.logits(defended, 1 - points, ids)
    judged = ASKING.logits(defended, points, ids)[:, 0]
    return answer_again(lambda: copy.deepcopy(fresh), defended, points, ids, judged, ASKING)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (Neighbours, Cause.BATCH),
        (OnlyLarge, Cause.BATCH),
        (Reads, Cause.HIDDEN),
        (Counts, Cause.REMEMBERS),
        (Remembers, Cause.REMEMBERS),
        (Private, Cause.REMEMBERS),
    ],
)
def test_each_cause_is_told(problem, kind, cause):
    model, images, _ = problem
    again = causes(Classifier(kind(model), 3).eval(), images)
    told = set(again.causes.tolist())
    assert told - {Cause.NONE} == {cause}
    assert (again.gaps[again.causes > 0] > 1).all() and (again.causes > 0).sum() >= 6
    assert again.passes[again.causes == 0].eq(1).all()


def test_an_honest_net_and_one_that_draws_from_its_noise_cost_one_pass(problem):
    model, images, _ = problem
    for defended in (Classifier(model, 3).eval(), NoisyLinear(model, 0.1)):
        again = causes(defended, images)
        assert not again.causes.any() and again.passes.eq(1).all()


def test_a_step_within_rounding_is_no_fault(problem):
    model, images, _ = problem
    # The last image is asked alone.
    at = float(images[11].double().sum()) + 1e-9
    again = causes(Classifier(Steep(model, at), 3).eval(), images)
    assert again.causes[11] == Cause.ROUNDING and again.causes.count_nonzero() == 1


def test_few_images_and_small_batches(problem):
    model, images, _ = problem
    for n in (1, 2, 3):
        again = causes(Classifier(model, 3).eval(), images[:n])
        assert not again.causes.any() and len(again.gaps) == n
    small = replace(ASKING, batch_size=1)
    fresh = Classifier(model, 3).eval()
    judged = small.logits(fresh, images, np.arange(12))[:, 0]
    again = answer_again(lambda: fresh, fresh, images, np.arange(12), judged, small)
    assert not again.causes.any()


def test_nan_and_infinite_logits_that_stay_are_no_difference(problem):
    model, images, _ = problem

    class Odd(nn.Module):
        def forward(self, x):
            z = model(x).clone()
            z[:, 0] = -torch.inf
            z[x[:, 0, 0, 0] > 0.5] = torch.nan
            return z

    assert not causes(Classifier(Odd(), 3).eval(), images).causes.any()
