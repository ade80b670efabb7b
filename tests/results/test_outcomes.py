"""Outcomes as strings, and which answers count as right."""

import numpy as np
import pytest

from bench.results.outcomes import (
    NO_STAGE,
    WRONG_BEFORE,
    Outcomes,
    Stages,
    decode,
    decode_ids,
    encode,
    encode_ids,
)
from tests.results.helpers import outcomes_of


def test_clean_wrong_images_are_broken(tmp_path):
    """A deterministic defense that is wrong on the clean image is not attacked, and stays
    broken.
    """
    outcomes = Outcomes.of(
        3,
        np.arange(3),
        np.array([0, 1, 2]),
        np.array([[1], [1], [2]]),
        np.array([[0], [1], [0]]),
        np.empty((3, 0), int),
    )
    assert outcomes.correct("adversarial").tolist() == [[False], [True], [False]]
    draws = Outcomes.of(
        3,
        np.arange(1),
        np.array([0]),
        np.array([[1, 0]]),
        np.array([[0, 0]]),
        np.empty((1, 0), int),
    )
    assert draws.correct("adversarial").tolist() == [[False, True]], (
        "draw by draw, on the same noise"
    )


@pytest.mark.parametrize("classes", [2, 10, 36, 37, 1000])
def test_outcome_strings_round_trip(classes):
    labels = np.array([0, 1, classes - 1, -1, 1])
    assert decode(encode(labels, classes), classes).tolist() == labels.tolist()
    ids = [5, 6, 7, 100, 3, 4, 0]
    assert decode_ids(encode_ids(ids)).tolist() == ids
    assert encode_ids(range(10_000)) == "0-9999"


def test_stages_say_what_each_of_them_left():
    """Ten images: two wrong before, three broken by the first stage, one by the second."""
    stages = np.array([WRONG_BEFORE] * 2 + [0] * 3 + [1] + [NO_STAGE] * 4)
    record = Stages.of(["first", "second"], stages)
    assert record.broken_by == "..0001----"
    assert record.left() == {"clean": 0.8, "first": 0.5, "second": 0.4}


def test_outcomes_of_other_lengths_are_refused():
    good = outcomes_of(np.ones((4, 2), dtype=bool))
    for change in (
        {"labels": good.labels[:-1]},
        {"clean": good.clean[:1]},
        {"adversarial": [*good.adversarial, good.clean[0]]},
        {"replayed": ["0"]},
        {"clean": [], "adversarial": []},
    ):
        with pytest.raises(ValueError, match="differ in length"):
            Outcomes.model_validate({**good.model_dump(), **change})


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ("0-2", "ids are of 3 images, labels of 4"),
        ("0-99999999999", "ids are of 100000000000 images"),
        ("0-1,1-2", "there twice"),
        ("0,1,2,3", "not folded"),
        ("3-0", "ends before it begins"),
        ("0-2,x", "not of the form"),
        ("", "not of the form"),
        ("0-3\n", "not of the form"),
        ("\u0660-\u0663", "not of the form"),
    ],
)
def test_ids_are_counted_before_they_are_made(ids, told):
    good = outcomes_of(np.ones((4, 2), dtype=bool))
    with pytest.raises(ValueError, match=told):
        Outcomes.model_validate({**good.model_dump(), "ids": ids})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_classes": 1}, "1 classes"),
        ({"num_classes": 0}, "0 classes"),
        ({"num_classes": 10**12}, "classes"),
        ({"labels": "01-1"}, "a label is a dash"),
        ({"labels": "01!1"}, "is not in"),
        ({"labels": "0121"}, "is not in"),
        ({"labels": "01 1"}, "is not in"),
        ({"labels": "01é1"}, "not written with"),
    ],
)
def test_classes_and_labels_are_in_range(change, told):
    good = outcomes_of(np.ones((4, 2), dtype=bool))
    with pytest.raises(ValueError, match=told):
        Outcomes.model_validate({**good.model_dump(), **change})


def test_a_code_is_digits_or_dashes_and_nothing_between():
    assert decode("00--0q", 37).tolist() == [0, -1, 26]
    for text in ("0-", "-0", "11", "+1", "1_"):
        with pytest.raises(ValueError, match="is not in"):
            decode(text, 37)


def test_stages_name_what_broke():
    for names, broken in ((["a", "a"], "00"), ([], "--"), (["a"], "01"), (["a"], "")):
        with pytest.raises(ValueError, match="stage"):
            Stages(names=names, broken_by=broken)
