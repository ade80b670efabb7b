"""What became of each image, and what broke it."""

import numpy as np

from bench.report.pictures.verdicts import breakers, kinds
from bench.results.extra import ExtraPoints
from bench.results.outcomes import Outcomes, Stages
from tests.report.helpers import record
from tests.results.helpers import matrix


def test_the_majority_decides_and_a_tie_is_wrong():
    one = record("a", matrix("1111", "1110", "1100", "0000"))
    assert kinds(one) == ["survived", "survived", "broken", "broken"]


def test_what_was_wrong_before_is_not_broken():
    one = record("a", matrix("1111", "0000"))
    answers = one.outcomes.predictions("clean")
    answers[1] = 1 - answers[1]
    outcomes = Outcomes.of(
        2,
        one.outcomes.image_ids(),
        one.outcomes.true_labels(),
        answers,
        one.outcomes.predictions("adversarial"),
        np.empty((2, 0), dtype=np.int64),
    )
    wrong = one.model_copy(update={"outcomes": outcomes})
    assert kinds(wrong) == ["survived", "clean-wrong"]
    assert [found.images.tolist() for found in breakers(wrong, [])] == [[False, False]]


def test_each_stage_each_other_attack_and_points_beside_are_named():
    one = record("a", matrix("1111", "0000", "0000", "1111"))
    other = record("a", matrix("0000", "1111", "0000", "1111"), attack="fgsm")
    again = record("a", matrix("1111", "1111", "1111", "1111"), seed=7)
    labels = one.outcomes.true_labels()
    extra = ExtraPoints.of("checks", 2, np.array([1, 3]), 1 - labels[[1, 3]][:, None])
    one = one.model_copy(
        update={
            "stages": Stages(names=["x", "y"], broken_by="-xy-".translate({120: "0", 121: "1"}))
        }
    ).model_copy(update={"extra": [extra]})
    found = {
        made.name: (made.record, made.images.nonzero()[0].tolist())
        for made in breakers(one, [one, other, again])
    }
    assert found == {
        "pgd, seed 0": ("", [1, 2]),
        "stage x": ("", [1]),
        "stage y": ("", [2]),
        "checks": ("", [3]),
        "fgsm": (other.id, [0, 2]),
        "pgd, seed 7": (again.id, []),
    }
