"""Metrics from outcomes."""

import numpy as np
import numpy.typing as npt
import pytest

from bench.results.intervals import share, wilson
from bench.results.metrics import accuracy, measure
from bench.results.outcomes import Outcomes
from tests.helpers import run_toys
from tests.results.helpers import outcomes_of


def test_accuracy_of_draws_under_three_rules() -> None:
    correct: npt.NDArray[np.bool_] = np.array(
        [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=bool
    )
    judged = accuracy(outcomes_of(correct), "clean")
    assert judged.mean == share(np.array([1, 0.75, 0.5, 0.25, 0]))
    assert judged.mean.value == 0.5
    assert judged.all_draws == wilson(1, 5)
    assert judged.majority == wilson(2, 5)


def test_accuracy_of_one_draw_is_one_answer() -> None:
    judged = accuracy(outcomes_of(np.arange(10)[:, None] < 7), "clean")
    assert judged.mean == judged.all_draws == judged.majority == wilson(7, 10)
    with pytest.raises(ValueError, match="no replayed draws"):
        accuracy(outcomes_of(np.ones((4, 1), dtype=bool)), "replayed")


def test_a_weak_search_that_breaks_nothing_says_nothing_about_collapse():
    """Two of three right and nothing lost: poor under a gradient attack that took nothing, no sign
    under a search.
    """
    labels = np.arange(60) % 2
    answers = np.where(np.arange(60) < 40, labels, 1 - labels)[:, None]
    outcomes = Outcomes.of(2, np.arange(60), labels, answers, answers, answers[:, :0])
    assert measure(outcomes, by_gradient=True).collapsed
    reason = measure(outcomes, by_gradient=False).collapse_reason
    assert "gradient" not in reason


@pytest.mark.parametrize(
    ("attack", "taken"),
    [("pgd:steps=1", True), ("noise", False), ("null", False), ("square:queries=1", False)],
)
def test_only_attacks_that_take_gradients_count_for_the_collapse_verdict(
    tmp_path, monkeypatch, attack, taken
):
    seen = []
    monkeypatch.setattr(
        "bench.engine.recording.measure",
        lambda outcomes, *, by_gradient: (
            seen.append(by_gradient) or measure(outcomes, by_gradient=by_gradient)
        ),
    )
    run_toys(tmp_path, defenses=("undefended",), attacks=(attack,))
    assert seen == [taken]


def test_a_right_answer_to_an_image_that_was_wrong_before_does_not_count_for_macro_f1():
    """Image 1 is wrong without attack and right under it; so are two classes of three images."""
    labels = np.array([0, 1, 1])
    clean, attacked = np.array([[0], [0], [1]]), np.array([[0], [1], [1]])
    outcomes = Outcomes.of(2, np.arange(3), labels, clean, attacked, attacked[:, :0])
    under_attack = accuracy(outcomes, "adversarial")
    assert under_attack.mean.value == pytest.approx(2 / 3)
    assert under_attack.macro_f1.value == pytest.approx((1 + 2 / 3) / 2)
