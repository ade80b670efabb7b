"""From a request to evaluations: matrices, names in any case, notes, and early refusals."""

import pytest

from bench.engine.plan import plan
from bench.engine.request import read_request
from bench.errors import BadInput
from bench.report.rows import rows_table
from tests.helpers import run_toys, toy_request
from tests.toys import linear_problem

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


def test_every_row_names_its_base_which_is_planned_once(tmp_path):
    evaluations = plan(
        toy_request(defenses=("toy-jitter", "undefended"), attacks=("pgd", "pgd+eot", "bpda"))
    )
    assert [str(c) for c in evaluations if c.defense.name == "undefended"] == [
        "undefended x pgd"
    ], "one base serves all randomness models"
    records = run_toys(tmp_path)
    assert records[1].base == records[0].id
    assert "base" in rows_table(records)


def test_a_gradient_that_is_not_offered_is_reported():
    notes = []
    plan(toy_request(defenses=("undefended",), attacks=("bpda",)), note=notes.append)
    assert len(notes) == 1 and "offers no gradient 'bpda'" in notes[0]
    notes.clear()
    plan(toy_request(defenses=("toy-jitter",), attacks=("bpda", "pgd")), note=notes.append)
    assert notes == [], "the base under a defense's attack is no request of the user"
