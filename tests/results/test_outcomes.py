"""Outcomes as strings, and which answers count as right."""

import numpy as np
import pytest

from bench.results.outcomes import Outcomes, decode, decode_ids, encode, encode_ids


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
