"""Searches in quick forms: the same outcomes, told in the record; one that misleads is dropped."""

from functools import partial
from types import NoneType

import numpy as np
import pytest
import torch
from bench_attacks.pgd import PGD
from torch import nn

from bench import evaluate
from bench.data.arrays import Arrays
from bench.engine.build import build
from bench.engine.compute import FOLDED, FORM, NARROW, ShardComputer
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.searching import quick_form
from bench.errors import BadInput
from bench.losses import cross_entropy
from bench.models.classifier import Classifier
from bench.models.folding import Folding
from bench.models.narrow import Narrow
from bench.noise import isolated
from bench.plugins.create import Named
from bench.searches.search import reader
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.models.test_folding import Firm

N, EPS = 30, 0.06


class Sly(nn.Module):
    """Says the opposite where it sees that it is folded, once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.sly = Firm(), False

    def forward(self, x):
        logits = self.net(x)
        return -logits if self.sly and self.is_quick() else logits

    def is_quick(self):
        return "forward" in vars(self.net[1])


class SlyInBfloat16(Sly):
    def is_quick(self):
        return self.net[0].weight.dtype == torch.bfloat16


def linear():
    with isolated(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def problem():
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(N, 1, 4, 4, generator=generator)
    return images, Firm()(images).argmax(1)


def evaluation(model):
    images, labels = problem()
    data = {"arrays": Named("arrays", "arrays", Arrays(images, labels, 3), ())}
    request = Request(
        defenses=("undefended",), attacks=("pgd:steps=5",), datasets=("arrays",), epsilons=(EPS,)
    )
    return plan(request, model=model, objects=data)[0]


AUTO, ON = Execution(compile="auto"), Execution(compile="on")


def test_outcomes_are_the_same_and_the_record_tells(tmp_path):
    records = {
        word: evaluate(
            Firm(),
            dataset=problem(),
            attacks="pgd:steps=5",
            eps=EPS,
            compile=word,
            classes=3,
            device="cpu",
            out=tmp_path / word,
        ).records[0]
        for word in ("auto", "on", "off")
    }
    auto, on, off = records["auto"], records["on"], records["off"]
    assert auto.id == on.id == off.id and auto.outcomes == on.outcomes == off.outcomes
    assert 0.2 < auto.metrics.adversarial.mean.value < 0.8
    assert auto.environment["compile"] == {"folded": N} and "compile" not in off.environment
    assert on.environment["compile"] == {"bfloat16": N}
    assert auto.cost.attack_backwards == off.cost.attack_backwards
    # A success is confirmed by a pass of the defense itself, which the end need not ask again.
    assert auto.cost.attack_forwards == off.cost.attack_forwards


def test_a_word_that_is_none_is_refused():
    with pytest.raises(BadInput, match="auto or on or off"):
        evaluate(Firm(), dataset=problem(), eps=EPS, compile="fast")


def test_nothing_is_folded_where_it_is_not_wanted_or_another_function():
    honest, sly, narrow = Firm(), Sly(), SlyInBfloat16()
    sly.sly = narrow.sly = True
    for model, execution, kind in (
        (honest, AUTO, Folding),
        (honest, ON, Narrow),
        (honest, Execution(), NoneType),
        (sly, AUTO, NoneType),
        (sly, ON, Narrow),
        (narrow, ON, Folding),
        (linear(), AUTO, NoneType),
        (linear(), ON, Narrow),
    ):
        one = evaluation(model)
        defended = build(one, torch.device("cpu"))
        assert type(quick_form(one, defended, execution)) is kind


class Viewing(nn.Module):
    """Takes its features for values that lie in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Firm()

    def forward(self, x):
        *body, _, head = self.net
        for part in body:
            x = part(x)
        return head(x.view(len(x), -1))


@pytest.mark.parametrize(("execution", "kind"), [(AUTO, Folding), (ON, Narrow)])
def test_a_network_that_takes_views_is_computed_in_its_own_layout(execution, kind):
    one = evaluation(Viewing())
    defended = build(one, torch.device("cpu"))
    form = quick_form(one, defended, execution)
    images, _ = problem()
    with form:
        assert defended.network.net[0].weight.is_contiguous()
        assert defended.network(images).shape == (N, 3)
    assert type(form) is kind
    defended = build(evaluation(Firm()), torch.device("cpu"))
    with quick_form(evaluation(Firm()), defended, execution):
        kernel = defended.network[3].weight
        assert kernel.is_contiguous(memory_format=torch.channels_last)
        assert not kernel.is_contiguous()


@pytest.mark.parametrize(
    ("model", "execution", "form"), [(Sly, AUTO, FOLDED), (SlyInBfloat16, ON, NARROW)]
)
def test_a_shard_whose_search_was_misled_is_computed_again_without(model, execution, form):
    one = evaluation(model())
    found = {}
    for sly in (False, True):
        defended = build(one, torch.device("cpu"))
        quick = quick_form(one, defended, execution)
        defended.network.sly = sly
        with frozen(defended):
            compute = partial(ShardComputer, one, defended, execution, None)
            found[sly], plain = compute(quick)((0, N)), compute(None)((0, N))
        assert np.array_equal(found[sly]["adversarial"], plain["adversarial"])
    assert found[False][FORM].tolist() == [form] * N
    assert found[True][FORM].tolist() == [0] * N
    assert np.array_equal(found[True]["points"], plain["points"])


class Opposite:
    """Inside this block a model says the opposite, or something else."""

    def __init__(self, model, rounding=0.0, says=-1) -> None:
        self.model, self.rounding, self.says = model, rounding, says

    def __enter__(self) -> None:
        self.model.sign = self.says

    def __exit__(self, *_) -> None:
        self.model.sign = 1


class Signed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.sign = Firm(), 1

    def forward(self, x):
        return self.sign * self.net(x)


def test_no_success_without_gradients_is_final_that_the_defense_does_not_confirm():
    images, labels = problem()
    model = Signed().eval()
    victim = Victim(Classifier(model, 3).requires_grad_(False), np.arange(N), fold=Opposite(model))
    rows = torch.arange(N)
    values, wrong = reader(victim, labels, 0)(images, rows)
    plain, _ = reader(Victim(victim._classifier, np.arange(N)), labels, 0)(images, rows)
    assert torch.equal(values, plain) and not wrong.any()
    assert victim.fold_use.queries == 1 and victim.fold_use.refuted == N
    assert (victim.forwards == 2).all()


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


class Late(nn.Module):
    """Says 0, by a hair in a quick form, where a pixel is below its start, and else 1."""

    def __init__(self) -> None:
        super().__init__()
        self.sign = 1

    def forward(self, x):
        gap = self.sign * 0.001 - 1e-6 * x.sum((1, 2, 3))
        return torch.stack([torch.ones_like(gap), 1 + gap], 1)


@pytest.mark.parametrize(("rounding", "asked"), [(0.0, 0), (0.01, 3)])
def test_in_a_coarse_form_near_successes_are_asked_about(rounding, asked):
    """The form takes every image for right by a hair; the classifier errs on all of them."""
    model = Late().eval()
    images, labels = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    victim = Victim(
        Classifier(model, 2).requires_grad_(False),
        np.arange(3),
        fold=Opposite(model, rounding, says=-1),
    )
    reading = victim.objective(labels, cross_entropy)(images, torch.arange(3), 0, True)
    assert victim.fold_use.successes == asked
    assert reading.success.tolist() == [bool(asked)] * 3
    values, wrong = reader(victim, labels, 0)(images, torch.arange(3))
    assert wrong.tolist() == [bool(asked)] * 3 and (values > 0).tolist() == wrong.tolist()


def asked_again():
    """A model, images with their labels, and a victim whose quick form is wrong everywhere, so that
    the model itself is asked.
    """
    images, labels = problem()
    model = Signed().eval()
    defended = Classifier(model, 3).requires_grad_(False)
    return model, images, labels, Victim(defended, np.arange(N), fold=Opposite(model))


def test_what_is_remembered_of_a_point_is_not_said_of_another():
    model, images, labels, victim = asked_again()
    rows, others = torch.arange(N), images.flip(0)
    reader(victim, labels, 0)(images, rows)
    asked = victim.forwards.clone()
    assert torch.equal(victim.verify(images)[:, 0], labels)
    assert torch.equal(victim.forwards, asked)
    mixed = torch.where((rows % 2 == 0)[:, None, None, None], images, others)
    assert torch.equal(victim.verify(mixed)[:, 0], model(mixed).argmax(1))
    assert torch.equal(victim.forwards - asked, rows % 2)


def test_of_several_points_of_an_image_the_first_is_remembered():
    model, images, labels, victim = asked_again()
    rows, others = torch.arange(N), images.flip(0)
    assert not torch.equal(model(images).argmax(1), model(others).argmax(1))
    reader(victim, labels, 0)(torch.cat([images, others]), torch.cat([rows, rows]))
    asked = victim.forwards.clone()
    assert torch.equal(victim.verify(images)[:, 0], model(images).argmax(1))
    assert torch.equal(victim.forwards, asked)
    assert torch.equal(victim.verify(others)[:, 0], model(others).argmax(1))
