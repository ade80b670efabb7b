"""The truth about a case, where a closed form has it."""

import copy

import pytest
import torch
from torch import nn

from bench.engine.request import Request
from bench.engine.setup import load_setup
from bench.storage.artifacts import empty_cache
from bench.studies import truth
from bench.studies.truth import search, upper_bound
from bench.threat import ThreatModel


class Linear(nn.Module):
    """Two classes by one direction; margins are known."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        score = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([-score, score], 1)


class Coin(nn.Module):
    """Right in half of the draws, whatever the image."""

    def __init__(self, labels):
        super().__init__()
        self.labels = labels

    def forward(self, x):
        right = torch.nn.functional.one_hot(self.labels, 10).float()
        heads = torch.rand(len(x)) < 0.5
        return torch.where(heads[:, None], right, 1 - right) + 0 * x.flatten(1).sum(1)[:, None]


class Forgetful(nn.Module):
    """Answers rightly from the second call on, and zeros before."""

    def __init__(self, labels):
        super().__init__()
        self.labels, self.calls = labels, 0

    def forward(self, x):
        self.calls += 1
        right = torch.nn.functional.one_hot(self.labels[: len(x)], 10).float()
        return (right if self.calls > 1 else 1 - right) + 0 * x.flatten(1).sum(1)[:, None]


@pytest.fixture(scope="module")
def setup():
    return load_setup(Request(epsilons=(0.1,), n=12).one_setup("a test"))


def test_the_search_reaches_the_closed_form_of_a_linear_model():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9, generator=generator)
    # Away from the box, so that the largest margin is the clean one plus eps times the L1 norm.
    images = 0.5 + 0.2 * (torch.rand(40, 1, 3, 3, generator=generator) - 0.5)
    score = (images.flatten(1) - 0.5) @ weight
    labels = (score > 0).long()
    points = search(Linear(weight), images, labels, ThreatModel("linf", 0.05), 0)
    reached = (points.flatten(1) - 0.5) @ weight
    expected = score - (2 * labels - 1) * 0.05 * weight.abs().sum()
    assert torch.allclose(reached, expected, atol=1e-5)
    assert float((points - images).abs().max()) <= 0.05 + 1e-6


def test_it_is_the_same_each_time_and_changes_no_module(setup):
    module = setup.classifier
    before = copy.deepcopy(module.state_dict())
    first = upper_bound(module, setup)
    with empty_cache():
        assert upper_bound(module, setup) == first < 0.2
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_a_random_answer_is_judged_on_draws_that_did_not_choose_the_point(setup, monkeypatch):
    monkeypatch.setattr(truth, "STEPS", 1)
    bound = upper_bound(Coin(setup.images.labels), setup, draws=40)
    assert 0.4 < bound < 0.6, "the least of several means would lie below one half"


def test_points_are_answered_by_a_copy_that_has_seen_nothing(setup, monkeypatch):
    monkeypatch.setattr(truth, "STEPS", 3)
    assert upper_bound(Forgetful(setup.images.labels), setup) == 0


def test_an_image_by_itself_is_answered_by_itself(setup, monkeypatch):
    monkeypatch.setattr(truth, "STEPS", 1)
    sizes = []

    class Sizes(nn.Module):
        def forward(self, x):
            if not torch.is_grad_enabled():
                sizes.append(len(x))
            return torch.zeros(len(x), 10) + x.flatten(1).sum(1, keepdim=True)

    upper_bound(Sizes(), setup, alone=True)
    assert set(sizes) == {1}
