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
        {"ids": "0-2"},
        {"clean": [], "adversarial": []},
    ):
        with pytest.raises(ValueError, match="differ in length"):
            Outcomes.model_validate({**good.model_dump(), **change})
