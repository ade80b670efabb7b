"""What a defense cannot work with is told when it is planned, before its base runs."""

import pytest
import torch
from torch import nn

import bench
from bench.engine import prepare
from bench.engine.compute import ShardComputer
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import run_evaluations
from bench.noise import isolated
from bench.results.store import Store
from tests import toy_model, toy_plugins  # noqa: F401
from tests.helpers import toy_request
from tests.toys import message


class Tanh(nn.Module):
    """Three logits that no linear layer gives last."""

    def __init__(self):
        super().__init__()
        with isolated(0):
            self.head = nn.Linear(16, 3)

    def forward(self, images):
        return torch.tanh(self.head(images.flatten(1)))


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = toy_model.make_model()

    def forward(self, images):
        return self.inner(images + 0.1 * torch.randn_like(images))


@pytest.mark.parametrize(
    ("defense", "model", "words"),
    [
        ("constant:label=10", toy_model.make_model, "label=10"),
        ("diffpure:model=(gaussian:channels=3,side=4)", toy_model.make_model, "for 3 channels"),
        ("diffpure:model=(gaussian:channels=1,side=8)", toy_model.make_model, "resize=true"),
        ("dad", Tanh, "does not end in one"),
        ("sap", Random, "one pass"),
        ("dfard", toy_model.make_model, "no BatchNorm layer"),
        ("dast", Random, "deterministic classifier"),
        ("datafreeshield", toy_model.make_model, "no BatchNorm layer"),
        ("datafreeshield", Random, "deterministic classifier"),
    ],
)
def test_what_a_defense_cannot_work_with_is_told_before_its_base_runs(
    monkeypatch, defense, model, words
):
    monkeypatch.setattr("bench.api.run_in_processes", lambda *_: pytest.fail("something ran"))

    def evaluate():
        bench.evaluate(model(), dataset="toy:n=6", defenses=defense, attacks="null", device="cpu")

    assert words in message(evaluate)


class Bare(nn.Module):
    """A linear layer alone: no activation, and a weight that cannot start anew."""

    def __init__(self):
        super().__init__()
        with isolated(0):
            self.head = nn.Linear(16, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.head(self.scale * images.flatten(1))


@pytest.mark.parametrize(
    ("defense", "words"),
    [
        ("k-wta", "no activation was met"),
        ("dad:pool=1000", "a pool of 1000"),
        ("dast:updates=2,batch=2", "images a batch are too few"),
        ("dast:updates=2,from_scratch=true", "no fresh weights"),
    ],
)
def test_what_only_building_shows_is_told_before_the_base_is_attacked(
    monkeypatch, defense, words, tmp_path
):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ShardComputer, "__call__", lambda *_: pytest.fail("something was attacked"))

    def evaluate():
        bench.evaluate(
            Bare(),
            dataset="toy:n=6",
            defenses=defense,
            attacks="null",
            device="cpu",
            out=tmp_path / "out",
        )

    assert words in message(evaluate)
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_base_whose_first_row_cannot_be_built_runs_for_the_next(tmp_path):
    """One row cannot be built, the other one can: the base and the other one are there."""
    evaluations = plan(
        toy_request(defenses=("k-wta", "bit-depth"), attacks=("null",), dataset="toy:n=6")
    )
    assert [one.defense.name for one in evaluations] == ["undefended", "k-wta", "bit-depth"]
    results = list(run_evaluations(evaluations, Store(tmp_path), Execution()))
    done = {one.evaluation.defense.name: one for one in results}
    assert results[0].evaluation.defense.name == "k-wta" and len(results) == 3
    assert done["k-wta"].rejected and done["undefended"].record and done["bit-depth"].record
    again = list(run_evaluations(evaluations[:2], Store(tmp_path), Execution()))
    assert [bool(one.record) for one in again] == [True, False]


def test_a_row_is_built_once_and_not_again_after_its_base(tmp_path, monkeypatch):
    built = []
    plain = prepare.build

    def counted(evaluation, *rest):
        built.append(evaluation.defense.name)
        return plain(evaluation, *rest)

    monkeypatch.setattr(prepare, "build", counted)
    evaluations = plan(toy_request(defenses=("bit-depth",), attacks=("null",), dataset="toy:n=6"))
    assert all(one.record for one in run_evaluations(evaluations, Store(tmp_path), Execution()))
    assert built == ["bit-depth", "undefended"]


def test_a_base_that_was_asked_for_runs_whatever_its_rows_are(tmp_path):
    """Also where the row that cannot be built stands before it in the request."""
    for defenses in (("undefended", "k-wta"), ("k-wta", "undefended"), ("k-wta",)):
        request = toy_request(defenses=defenses, attacks=("null",), dataset="toy:n=6")
        store = Store(tmp_path / "-".join(defenses))
        results = list(run_evaluations(plan(request), store, Execution()))
        assert sum(result.record is not None for result in results) == len(defenses) - 1
        assert sum(result.rejected is not None for result in results) == 1
