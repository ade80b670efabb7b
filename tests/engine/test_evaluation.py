"""What an evaluation is: settings that cannot matter, and those that do."""

import numpy as np
import pytest

from bench.engine.evaluation import Evaluation
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.setup import load_setup
from tests.helpers import toy_request
from tests.toys import NoisyLinear, linear_problem

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


def test_settings_that_cannot_matter_do_not_split_evaluations():
    plain, *rest = plan(
        toy_request(defenses=("undefended",), attacks=("pgd", "pgd+replay", "bpda", "bpda+eot"))
    )
    assert not rest
    assert plain.gradient == "full" and str(plain.randomness) == "fresh"


def test_a_build_seed_counts_where_something_is_drawn():
    first, second = (
        plan(toy_request(defenses=("undefended", "toy-jitter"), build_seed=seed)) for seed in (0, 1)
    )
    assert first[0].id == second[0].id and first[-1].id != second[-1].id
    assert plan(toy_request(build_seed=1))[0].id == first[0].id, "nor does it make another base"


@pytest.mark.parametrize(
    "change",
    [
        {"attacks": ("pgd+replay:steps=6",)},
        {"eps": 0.06},
        {"n": 149},
        {"seeds": (1,)},
        {"build_seed": 1},
        {"norm": "l2", "eps": 0.05},
        {"defenses": ("toy-jitter:sigma=0.06",)},
        {"dataset": "toy:n=151"},
        {"attacks": ("pgd+eot:steps=5",)},
        {"gradient": "bpda"},
    ],
)
def test_everything_that_can_matter_changes_the_identity(change):
    assert plan(toy_request(**change))[-1].id != plan(toy_request())[-1].id


def test_training_data_is_part_of_the_identity_where_it_is_declared(tmp_path):
    _, images, labels = linear_problem(3, 20, active_box=False)
    ids = []
    for shift in (0.0, 0.01):
        arrays = {
            "x_test": images[:, 0].numpy(),
            "y_test": labels.numpy(),
            "y_train": labels.numpy(),
        }
        np.savez(tmp_path / "a.npz", x_train=images[:, 0].numpy() + shift, **arrays)
        dataset = f"npz:{tmp_path}/a.npz"
        ids.append(
            [
                plan(toy_request(defenses=(d,), dataset=dataset, eps=0.1))[-1].id
                for d in ("toy-honest", "toy-jitter")
            ]
        )
    assert ids[0][0] != ids[1][0] and ids[0][1] == ids[1][1]
