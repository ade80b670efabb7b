"""Searches under a fold: the same outcomes, told in the record; a fold that misleads is dropped."""

from functools import partial

import numpy as np
import pytest
import torch
from bench_attacks.pgd import PGD
from torch import nn

from bench import evaluate
from bench.data.arrays import Arrays
from bench.engine.build import build
from bench.engine.compute import FOLDED, ShardComputer
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.searching import folding_of
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.plugins.create import Named
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.models.test_folding import Net

N, EPS = 30, 0.06


class Sly(nn.Module):
    """Says the opposite where it sees that it is folded, once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.sly = Net(), False

    def forward(self, x):
        logits = self.net(x)
        return -logits if self.sly and "forward" in vars(self.net[1]) else logits


def problem():
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(N, 1, 4, 4, generator=generator)
    return images, Net()(images).argmax(1)


def evaluation(model):
    images, labels = problem()
    data = {"arrays": Named("arrays", "arrays", Arrays(images, labels, 3), ())}
    request = Request(
        defenses=("undefended",), attacks=("pgd:steps=5",), datasets=("arrays",), epsilons=(EPS,)
    )
    return plan(request, model=model, objects=data)[0]


AUTO = Execution(compile="auto")


def test_outcomes_are_the_same_and_the_record_tells(tmp_path):
    records = {
        word: evaluate(
            Net(),
            dataset=problem(),
            attacks="pgd:steps=5",
            eps=EPS,
            compile=word,
            classes=3,
            device="cpu",
            out=tmp_path / word,
        ).records[0]
        for word in ("auto", "off")
    }
    auto, off = records["auto"], records["off"]
    assert auto.id == off.id and auto.outcomes == off.outcomes
    assert 0.2 < auto.metrics.adversarial.mean.value < 0.8
    assert auto.environment["compile"] == {"folded": N} and "compile" not in off.environment
    assert auto.cost.attack_backwards == off.cost.attack_backwards
    # Each image that a step with a gradient breaks is confirmed by one pass more.
    more = N * (auto.cost.attack_forwards - off.cost.attack_forwards)
    broken = N * (1 - auto.metrics.adversarial.mean.value)
    assert 0 < round(more) <= round(broken)


def test_a_word_that_is_none_is_refused():
    with pytest.raises(BadInput, match="auto or off"):
        evaluate(Net(), dataset=problem(), eps=EPS, compile="fast")


def test_nothing_is_folded_where_it_is_not_wanted_or_another_function():
    honest, sly = Net(), Sly()
    sly.sly = True
    for model, execution, there in (
        (honest, AUTO, True),
        (honest, Execution(), False),
        (sly, AUTO, False),
    ):
        one = evaluation(model)
        defended = build(one, torch.device("cpu"))
        assert (folding_of(one, defended, execution) is not None) == there


def test_a_shard_whose_search_was_misled_is_computed_again_without():
    one = evaluation(Sly())
    found = {}
    for sly in (False, True):
        defended = build(one, torch.device("cpu"))
        folding = folding_of(one, defended, AUTO)
        assert len(folding) == 2
        defended.network.sly = sly
        with frozen(defended):
            compute = partial(ShardComputer, one, defended, AUTO, None)
            found[sly], plain = compute(folding)((0, N)), compute(None)((0, N))
        assert np.array_equal(found[sly]["adversarial"], plain["adversarial"])
    assert found[False][FOLDED].tolist() == [1] * N
    assert found[True][FOLDED].tolist() == [0] * N
    assert np.array_equal(found[True]["points"], plain["points"])


class Opposite:
    """Inside this block a model says the opposite."""

    def __init__(self, model) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.model.sign = -1

    def __exit__(self, *_) -> None:
        self.model.sign = 1


class Signed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.sign = Net(), 1

    def forward(self, x):
        return self.sign * self.net(x)


def test_no_success_is_final_that_the_defense_does_not_confirm():
    """Under the fold every image looks broken at once: none is given up for it."""
    images, labels = problem()
    model = Signed().eval()
    defended = Classifier(model, 3).requires_grad_(False)
    victim = Victim(defended, np.arange(N), fold=Opposite(model))
    result = PGD(steps=4)(victim, images, labels, ThreatModel("linf", 1e-6))
    assert (result.predictions[:, 0] == labels).all()
    assert victim.fold_use.queries == 4
    assert victim.fold_use.successes == victim.fold_use.refuted > 3 * N
    assert (victim.backwards == 4).all()
