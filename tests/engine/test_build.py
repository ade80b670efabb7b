"""Built defenses: a copy of the classifier, the declared data, and what was promised."""

import pytest
import torch
from torch import nn

from bench.engine.build import build
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import run_evaluations
from bench.results.store import Store
from tests import toy_model
from tests.helpers import run_toys, toy_request


class KeptDropout(nn.Module):
    """Its dropout stays on while all else is in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.dropout, self.inner = nn.Dropout(0.5), toy_model.make_model()

    def forward(self, images):
        return self.inner(self.dropout(images))


@pytest.mark.parametrize("defense", ["undefended", "toy-jitter"])
def test_dropout_at_test_time_stays_on_behind_a_defense(defense):
    network = KeptDropout().eval()
    network.dropout.train()
    asked = toy_request(defenses=(defense,), n=4)
    built = build(plan(asked, model=network)[-1], torch.device("cpu"))
    assert [module.training for module in built.modules() if isinstance(module, nn.Dropout)] == [
        True
    ]


def test_a_defense_that_trains_in_place_spoils_no_other_evaluation(tmp_path):
    records = {
        r.title["defense"]: r
        for r in run_toys(tmp_path, defenses=("toy-vandal", "toy-jitter"), attacks=("null",))
    }
    assert records["undefended"].metrics.clean.mean.value == 1
    assert records["toy-vandal"].metrics.clean.mean.value < 0.5
    assert records["toy-jitter"].metrics.clean.mean.value > 0.6
    assert records["toy-vandal"].metrics.collapsed


def test_a_defense_may_train_its_copy(tmp_path):
    records = {
        r.title["defense"]: r
        for r in run_toys(tmp_path, defenses=("toy-trainer",), attacks=("pgd:steps=2",))
    }
    assert records["toy-trainer"].metrics.clean.mean.value > 0.5
    assert records["toy-trainer"].access == ["training data"]
    assert records["undefended"].metrics.clean.mean.value == 1


def test_what_a_defense_says_and_what_it_builds_must_agree(tmp_path):
    for name, words in (("toy-secret", "stochastic"), ("toy-rounding", "gradients")):
        evaluations = plan(toy_request(defenses=(name,), attacks=("bpda",)))
        rejected = list(run_evaluations(evaluations, Store(tmp_path), Execution()))[-1].rejected
        assert words in str(rejected)


def test_undeclared_data_is_refused_and_leaves_no_record(tmp_path):
    evaluations = plan(toy_request(defenses=("toy-thief",), attacks=("pgd",)))
    results = list(run_evaluations(evaluations, Store(tmp_path), Execution()))
    assert "without declaring" in str(results[-1].rejected)
    assert not list(tmp_path.glob("*.json")), "nothing ran, the base neither"
