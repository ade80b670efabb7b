"""The setup of evaluations: images, classifier and threat model, loaded and checked."""

import pytest
import torch
from torch import nn

from bench.engine.request import SetupRequest, read_request
from bench.engine.setup import load_setup, load_setups
from tests import toy_model, toy_plugins  # noqa: F401
from tests.helpers import MODEL
from tests.toys import message


def asked(dataset="toy", classifier=MODEL, norm=None, eps=None, n=None) -> SetupRequest:
    return SetupRequest(dataset, classifier, norm, eps, n)


def test_what_is_not_asked_for_is_the_data_sets_own():
    setup = load_setup(asked(dataset="toy:n=1001"))
    assert (setup.threat.norm, setup.threat.eps) == ("linf", 0.05)
    assert (len(setup.images), setup.available) == (1000, 1001)
    assert setup.sources == {"dataset": "toy:n=1001", "classifier": MODEL}


def test_a_model_of_ones_own_is_the_classifier_and_is_named_by_its_class():
    model = toy_model.make_model()
    setup = load_setup(asked(classifier=None), model)
    assert setup.classifier_spec == f"python:{type(model).__name__}"
    images = setup.images.pixels()
    with torch.no_grad():
        assert torch.equal(setup.classifier.network(images), model(images))
    assert not setup.classifier.training and not setup.classifier.stochastic


def test_a_model_that_draws_from_a_global_generator_is_stochastic():
    model = nn.Sequential(nn.Dropout(0.5).train(), toy_model.make_model()).eval()
    model[0].train()
    assert load_setup(asked(classifier=None), model).classifier.stochastic


def test_several_eps_share_images_and_classifier():
    values = {"dataset": "toy", "classifier": MODEL, "eps": [0.1, 0.2]}
    first, second = load_setups(read_request(values, "test"))
    assert (first.threat.eps, second.threat.eps) == (0.1, 0.2)
    assert first.images is second.images and first.classifier is second.classifier


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 0}, "1 to 40"),
        ({"n": 41}, "1 to 40"),
        ({"norm": "l2"}, "no default eps under l2"),
        ({"classifier": None}, "no classifier of its own"),
        ({"classifier": f"{MODEL}:x=1"}, "takes no parameters"),
        ({"classifier": MODEL.replace("make_model", "make_number")}, "returned int"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, words):
    assert words in message(lambda: load_setup(asked(**changes)))
