"""What an evaluation is: settings that cannot matter, and those that do."""

import pytest

from bench.engine.evaluation import Evaluation
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.setup import load_setup
from tests import toy_plugins  # noqa: F401

FROZEN = "replay:freeze=first+second"


def planned(defense: str, randomness: str, classifier: str | None = None) -> Evaluation:
    request = Request(
        defenses=(defense,),
        attacks=("pgd",),
        dataset="toy",
        classifier=classifier or "zoo:mnist5k-cnn",
        randomness=randomness,
    )
    return plan(request, SETUPS.setdefault(classifier or "", setup_of(classifier)))[-1]


SETUPS: dict = {}


def setup_of(classifier):
    from tests.toys import NoisyLinear, linear_problem

    linear = linear_problem(3, 1, active_box=False)[0]
    model = NoisyLinear(linear, 0.1) if classifier == "noisy" else linear
    return load_setup(Request(dataset="toy").one_setup("test"), model)


@pytest.mark.parametrize("randomness", ["eot:k=3", "replay", "replay-set:k=2", "common"])
def test_the_randomness_model_counts_where_the_defense_is_stochastic_and_only_there(randomness):
    assert planned("undefended", randomness).id == planned("undefended", "fresh").id
    assert planned("toy-jitter", randomness).id != planned("toy-jitter", "fresh").id
    assert str(planned("toy-jitter", randomness).randomness) == randomness
    assert planned("undefended", randomness, "noisy").id != planned("undefended", "fresh").id
    assert str(planned("undefended", randomness, "noisy").randomness) == randomness


def test_freezing_all_stages_is_replay_unless_the_classifier_draws_as_well():
    assert planned("toy-stages", FROZEN).id == planned("toy-stages", "replay").id
    assert planned("toy-stages", FROZEN, "noisy").id != planned("toy-stages", "replay", "noisy").id
    assert planned("toy-stages", FROZEN, "noisy").randomness.freeze == ("first", "second")


def test_freezing_no_stage_of_the_base_leaves_it_fresh():
    base = planned("toy-stages", FROZEN, "noisy").base()
    assert base is not None and str(base.randomness) == "fresh"
