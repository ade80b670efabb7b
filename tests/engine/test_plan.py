"""From a request to evaluations: matrices, names in any case, notes, and early refusals."""

import pytest

from bench.engine.plan import plan
from bench.engine.request import Request, read_request
from bench.errors import BadInput
from tests import toy_plugins  # noqa: F401
from tests.toys import linear_problem, message

MODEL = linear_problem(3, 1, active_box=False)[0]


def planned(notes=None, **values):
    given = {"defense": "undefended", "attack": "pgd", "dataset": "toy", **values}
    note = (lambda _: None) if notes is None else notes.append
    return plan(read_request(given, "test"), model=MODEL, note=note)


def test_repeated_options_make_a_matrix():
    evaluations = planned(eps=[0.1, "8/255"], norm=["linf", "l2"], dataset=["toy", "toy:n=20"])
    rows = {(e.setup.dataset.spec, e.setup.threat.norm, e.setup.threat.eps) for e in evaluations}
    assert len(rows) == len(evaluations) == 8
    assert ("toy:n=20", "l2", 8 / 255) in rows


def test_setups_of_one_data_set_and_classifier_share_both():
    first, second = planned(eps=[0.1, 0.2])
    assert first.setup.classifier is second.setup.classifier
    assert first.setup.images is second.setup.images
    assert first.id != second.id


def test_names_norms_and_modifiers_ignore_case():
    (plain,) = planned(norm="linf")
    for values in ({"attack": "PGD"}, {"defense": "Undefended"}, {"norm": "INF"}, {"norm": "Linf"}):
        (same,) = planned(**{"norm": "linf", **values})
        assert same.id == plain.id and same.title == plain.title
    assert planned(attack="Pgd+BPDA")[0].id == planned(attack="bpda")[0].id


def test_a_single_setup_is_asked_for_where_only_one_can_be():
    request = read_request({"eps": ["0.1", "0.2"]}, "test")
    assert message(lambda: request.one_setup("a study")) == "a study takes one --eps: give it once"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"attack": "pgd:step=0.5", "eps": 0.1}, "crosses the whole ball"),
        ({"randomness": "eot"}, "its default, eot:k=20"),
        ({"attack": "pgd+eot"}, "its default, eot:k=20"),
        ({"gradient": "bpda"}, "offers no gradient 'bpda'"),
    ],
)
def test_what_a_user_should_know_is_noted_once(values, words):
    notes: list[str] = []
    planned(notes, seed=[0, 1], **values)
    assert len([note for note in notes if words in note]) == 1, notes


@pytest.mark.parametrize(
    "values",
    [{"attack": "pgd:step=0.2", "eps": 0.1}, {"randomness": "eot:k=20"}, {"attack": "fgsm"}],
)
def test_what_is_usual_is_not_noted(values):
    notes: list[str] = []
    planned(notes, **values)
    assert not notes


def test_parameters_are_checked_against_the_classes_before_anything_runs():
    with pytest.raises(BadInput, match="there are 3 classes"):
        planned(defense="constant:label=3")


def test_given_lists_the_options_by_their_words():
    request = Request(epsilons=(0.1,), seeds=(1,), attacks=("pgd",))
    assert request.given() == ["seed", "eps"]
