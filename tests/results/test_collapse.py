"""The collapse rule, sign by sign and at its limits."""

import numpy as np
import pytest

from bench.results.arrays import Ints
from bench.results.class_scores import NO_CLASS
from bench.results.collapse import Collapse, collapsed
from bench.results.intervals import class_estimates
from tests.results.helpers import DERMA, constant, labels_of
from tests.results.test_class_scores import BLOOD


def guesses(labels: Ints, K: int, share_right: float, seed: int = 0) -> Ints:
    """(n, 1) predictions: right with the given probability, else uniform over all classes."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(labels)) < share_right, labels, rng.integers(0, K, len(labels)))[
        :, None
    ]


def test_constant_predictor_on_derma_is_collapsed() -> None:
    labels = labels_of(DERMA)
    collapse = collapsed(labels, constant(labels, 5), 7, None)
    assert collapse.verdict
    assert collapse.largest_predicted_share == 1
    assert collapse.constant_accuracy == pytest.approx(0.6688, abs=5e-5)
    assert collapse.macro_f1.value == pytest.approx(0.1145, abs=5e-5)
    assert collapse.balanced_accuracy.value == pytest.approx(1 / 7)
    for sign in (
        "class 5 gets 100.0% of the answers",
        "accuracy 66.88% is that of a constant",
        "balanced accuracy 14.3%",
    ):
        assert sign in collapse.reason
    assert "gradient" not in collapse.reason


def test_single_class_at_nine_percent_is_collapsed() -> None:
    labels = labels_of(BLOOD)
    predictions = constant(labels, 2)
    assert (predictions[:, 0] == labels).mean() == 311 / 3421
    collapse = collapsed(labels, predictions, 8, None)
    assert collapse.verdict
    assert collapse.constant_accuracy == 666 / 3421
    assert "constant answer" not in collapse.reason


def test_healthy_classifier_is_not_collapsed() -> None:
    labels = labels_of(DERMA)
    predictions = guesses(labels, 7, 0.8)
    collapse = collapsed(labels, predictions, 7, 0.3)
    assert not collapse.verdict
    assert collapse.reason == ""
    assert collapse.largest_predicted_share == pytest.approx(0.56, abs=0.03)
    estimates = class_estimates(labels, predictions, 7)
    assert (collapse.balanced_accuracy, collapse.macro_f1) == estimates


@pytest.mark.parametrize(("in_one_class", "verdict"), [(950, True), (949, False)])
def test_predicted_share_limit(in_one_class: int, verdict: bool) -> None:
    labels = labels_of([920, 80])
    predictions = constant(labels, 0)
    predictions[-(1000 - in_one_class) :] = 1
    collapse = collapsed(labels, predictions, 2, None)
    assert collapse.largest_predicted_share == in_one_class / 1000
    assert collapse.verdict is verdict
    assert ("% of the answers" in collapse.reason) is verdict


def test_chance_is_collapsed_however_spread_the_answers_are() -> None:
    labels = labels_of([100] * 10)
    collapse = collapsed(labels, guesses(labels, 10, 0.0), 10, None)
    assert collapse.verdict
    assert collapse.largest_predicted_share < 0.2
    assert "balanced accuracy" in collapse.reason
    assert not collapsed(labels, guesses(labels, 10, 0.15), 10, None).verdict


def test_the_lower_bound_and_not_the_value_is_held_against_chance() -> None:
    labels = np.arange(1000) % 10
    wrong = (labels + 1) % 10

    def with_right(count: int) -> Collapse:
        return collapsed(
            labels, np.where(np.arange(1000) < count, labels, wrong)[:, None], 10, None
        )

    unsure, sure = with_right(135), with_right(155)
    assert unsure.balanced_accuracy.low < 0.12 < unsure.balanced_accuracy.value
    assert unsure.verdict
    assert 0.12 < sure.balanced_accuracy.low < 0.14
    assert not sure.verdict


@pytest.mark.parametrize(
    ("false_alarms", "right_minority", "verdict"),
    [
        (50, 50, True),
        (47, 52, True),
        (46, 52, False),
        (50, 51, False),
        (52, 47, True),
        (52, 46, False),
    ],
)
def test_accuracy_of_a_constant_answer(
    false_alarms: int, right_minority: int, verdict: bool
) -> None:
    labels = labels_of([900, 100])
    predictions = constant(labels, 0)
    predictions[:false_alarms] = 1
    predictions[900 : 900 + right_minority] = 1
    collapse = collapsed(labels, predictions, 2, None)
    assert collapse.balanced_accuracy.low > 0.6
    assert collapse.verdict is verdict
    assert ("constant answer" in collapse.reason) is verdict


@pytest.mark.parametrize(
    ("lost", "verdict"), [(0.0, True), (0.0099, True), (0.01, False), (None, False), (-0.02, True)]
)
def test_gradient_attack_that_takes_nothing_from_a_poor_classifier(
    lost: float | None, verdict: bool
) -> None:
    labels = labels_of([100] * 10)
    predictions = guesses(labels, 10, 0.08)
    accuracy = float((predictions[:, 0] == labels).mean())
    collapse = collapsed(labels, predictions, 10, None if lost is None else accuracy - lost)
    assert 0.14 < collapse.macro_f1.value < 0.2
    assert collapse.verdict is verdict
    assert ("gradient attack" in collapse.reason) is verdict


def test_an_unmoved_but_good_binary_classifier_is_not_collapsed() -> None:
    labels = labels_of([500, 500])
    good, poor = guesses(labels, 2, 0.8), guesses(labels, 2, 0.3)
    assert not collapsed(labels, good, 2, float((good[:, 0] == labels).mean())).verdict
    assert (
        "gradient attack" in collapsed(labels, poor, 2, float((poor[:, 0] == labels).mean())).reason
    )
    assert not collapsed(labels, poor, 2, 0.0).verdict


def test_few_images_do_not_make_a_collapse() -> None:
    """An 80/20 set of two classes on which only the larger one is answered: 20 images may show that
    by chance, 50 hardly.
    """
    few, enough = labels_of([16, 4]), labels_of([40, 10])
    assert collapsed(few, constant(few, 0), 2, 0.8).reason == ""
    assert collapsed(enough[:49], constant(enough[:49], 0), 2, 0.8).reason == ""
    assert "class 0 gets" in collapsed(enough, constant(enough, 0), 2, None).reason


def test_a_class_that_is_rare_in_the_labels_may_be_missed_by_chance() -> None:
    """Three of 50 images are of the other class: a perfect answer differs in three answers only."""
    labels = labels_of([47, 3])
    collapse = collapsed(labels, constant(labels, 0), 2, None)
    assert "of the answers" not in collapse.reason
    assert "of the answers" in collapsed(labels_of([45, 5]), constant(labels, 0), 2, None).reason


def test_signs_over_classes_count_from_ten_images_a_class() -> None:
    labels = np.arange(100) % 10
    wrong = 9 - labels[:, None]
    reason = collapsed(labels, wrong, 10, 0.0).reason
    assert "balanced accuracy" in reason and "macro-F1" in reason and "gradient" in reason
    assert collapsed(labels[:99], wrong[:99], 10, 0.0).reason == ""


def test_macro_f1_below_chance_is_collapsed() -> None:
    """16 % right on ten classes: two of them share the answers, and six in ten right answers are of
    the larger class.
    """
    labels = labels_of([40, 40, *[15] * 8])
    predictions = np.where(labels < 2, 1 - labels, 0)[:, None]
    predictions[:24], predictions[40:48] = 0, 1
    collapse = collapsed(labels, predictions, 10, None)
    assert (predictions[:, 0] == labels).mean() == 0.16
    assert collapse.macro_f1.value < 0.07 and "macro-F1" in collapse.reason
    assert "below chance (10.0%)" in collapse.reason


def test_labels_of_one_class_cannot_show_a_collapse_of_a_right_classifier() -> None:
    labels = labels_of([0, 0, 200])
    assert not collapsed(labels, constant(labels, 2), 3, 1.0).verdict
    assert collapsed(labels, constant(labels, 1), 3, None).verdict


def test_perfect_and_constant_answers_differ_where_nearly_all_labels_agree() -> None:
    labels = labels_of([997, 3])
    assert not collapsed(labels, labels[:, None], 2, 1.0).verdict
    assert collapsed(labels, constant(labels, 0), 2, None).verdict


def test_missing_classes_are_left_out() -> None:
    labels = labels_of([0, 300, 0, 300, 0])
    collapse = collapsed(labels, labels[:, None], 5, 0.5)
    assert not collapse.verdict
    assert collapse.macro_f1.value == collapse.balanced_accuracy.value == 1
    assert collapsed(labels, constant(labels, 3), 5, None).verdict


def test_nan_outputs_are_no_class_of_their_own() -> None:
    labels = labels_of([50, 50, 50])
    collapse = collapsed(labels, constant(labels, NO_CLASS), 3, None)
    assert collapse.largest_predicted_share == 0
    assert collapse.verdict
    assert "balanced accuracy" in collapse.reason


@pytest.mark.parametrize(("guess", "accuracy"), [(4, 0.1112), (5, 0.6688)])
def test_a_constant_student_of_seven_classes_is_flagged(guess: int, accuracy: float) -> None:
    labels = labels_of([66, 103, 220, 23, 223, 1341, 29])
    assert len(labels) == 2005
    assert collapsed(labels, constant(labels, guess), 7, accuracy).verdict
    assert (labels == guess).mean() == pytest.approx(accuracy, abs=5e-5)
