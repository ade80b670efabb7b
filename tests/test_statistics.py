"""Statistics against known answers, against other libraries, and against their own claims by
simulation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ks_2samp
from sklearn.metrics import balanced_accuracy_score, f1_score
from statsmodels.stats.proportion import proportion_confint

from bench.results.estimate import Estimate
from bench.results.statistics import (
    NO_CLASS,
    Collapse,
    Floats,
    Ints,
    Numbers,
    balanced_accuracy,
    cluster_bootstrap,
    collapsed,
    constant_accuracy,
    judge,
    macro_f1,
    tally,
    wilson,
    worst_case,
)

DERMA = [66, 103, 220, 23, 223, 1341, 29]
BLOOD = [244, 624, 311, 579, 243, 284, 666, 470]


def labels_of(counts: list[int]) -> Ints:
    return np.repeat(np.arange(len(counts)), counts)


def constant(labels: Ints, answer: int) -> Ints:
    return np.full((len(labels), 1), answer)


def guesses(labels: Ints, K: int, share_right: float, seed: int = 0) -> Ints:
    """(n, 1) predictions: right with the given probability, else uniform over all classes."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(labels)) < share_right, labels, rng.integers(0, K, len(labels)))[
        :, None
    ]


# Wilson -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "high"), [(100, 0.0370), (256, 0.0148), (512, 0.0074), (1000, 0.0038), (10_000, 0.0004)]
)
def test_wilson_upper_bound_of_no_success(n: int, high: float) -> None:
    interval = wilson(0, n)
    assert interval.value == interval.low == 0
    assert interval.high == pytest.approx(high, abs=5e-5)
    assert wilson(n, n).high == 1


def test_wilson_known_answers() -> None:
    interval = wilson(45, 1000)
    assert (interval.low, interval.high) == pytest.approx((0.033800, 0.059683), abs=5e-7)
    assert interval.value == 0.045
    for n, half in [(10_000, 0.0097), (1000, 0.0306), (200, 0.068), (100, 0.095)]:
        at = wilson(0.4321 * n, n)
        assert (at.high - at.low) / 2 == pytest.approx(half, abs=6e-4)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy_and_statsmodels(case: tuple[int, int]) -> None:
    k, n = case
    ours = wilson(k, n)
    scipy_interval = binomtest(k, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx(
        (scipy_interval.low, scipy_interval.high), abs=1e-12
    )
    assert (ours.low, ours.high) == pytest.approx(
        proportion_confint(k, n, method="wilson"), abs=1e-12
    )
    assert ours.low <= ours.value <= ours.high


def test_wilson_of_fractional_successes_lies_between_its_neighbours() -> None:
    below, at, above = wilson(7, 20), wilson(7.5, 20), wilson(8, 20)
    assert below.low < at.low < above.low
    assert below.high < at.high < above.high


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (float("nan"), 5)])
def test_wilson_refuses_what_is_no_share(successes: float, n: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson(successes, n)


def test_interval_refuses_values_outside_the_unit_range() -> None:
    with pytest.raises(ValueError, match="is empty"):
        Estimate(0.5, 0.6, 0.4)


# Class-aware scores -------------------------------------------------------------------------------


def test_tally_counts_right_due_and_given_answers_and_gives_nan_to_no_class() -> None:
    counts = tally(np.array([0, 0, 1, 2]), np.array([0, NO_CLASS, 2, 2]), 3)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 0, 1], [2, 1, 1], [1, 0, 2]]


def test_tally_pools_draws() -> None:
    counts = tally(
        np.array([1, 0], dtype=np.uint8), np.array([[1, 1, 0], [0, -1, -1]], dtype=np.int8), 2
    )
    assert counts.tolist() == [[1, 2], [3, 3], [2, 2]]


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        ([0, 3], [0, 0]),
        ([-1, 0], [0, 0]),
        ([0, 0], [0, 3]),
        ([0, 0], [0, -2]),
        ([0], [0, 1]),
        ([], []),
    ],
)
def test_tally_refuses_what_is_out_of_range(labels: list[int], predictions: list[int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        tally(np.array(labels, dtype=int), np.array(predictions, dtype=int), 3)


def test_macro_f1_of_a_constant_predictor() -> None:
    labels = labels_of([90, 10])
    assert macro_f1(tally(labels, constant(labels, 0), 2)) == pytest.approx(0.4737, abs=5e-5)


@pytest.mark.parametrize("counts", [DERMA, BLOOD, [5, 5], [1, 2, 3, 4, 90]])
def test_floors_of_the_best_constant_predictor(counts: list[int]) -> None:
    labels, K = labels_of(counts), len(counts)
    table, share = (
        tally(labels, constant(labels, int(np.argmax(counts))), K),
        max(counts) / sum(counts),
    )
    assert macro_f1(table) == pytest.approx(2 * share / (K * (1 + share)))
    assert balanced_accuracy(table) == pytest.approx(1 / K)
    assert constant_accuracy(labels, K) == share


@pytest.mark.parametrize("seed", range(20))
def test_scores_agree_with_sklearn_also_with_missing_classes_and_nan_outputs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 2, 3, 5], size=40)
    predictions = np.where(rng.random(40) < 0.5, labels, rng.integers(-1, 6, 40))
    table = tally(labels, predictions, 6)
    present = np.unique(labels)
    expected = f1_score(labels, predictions, labels=present, average="macro", zero_division=0)
    assert macro_f1(table) == pytest.approx(expected)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert balanced_accuracy(table) == pytest.approx(
            balanced_accuracy_score(labels, predictions)
        )


def test_scores_work_over_leading_axes() -> None:
    tables = np.random.default_rng(0).integers(0, 9, (3, 4, 3, 6))
    for score in (macro_f1, balanced_accuracy):
        together = score(tables)
        assert together.shape == (3, 4)
        assert together[2, 1] == score(tables[2, 1]) != score(tables[1, 2])


def test_constant_accuracy() -> None:
    assert constant_accuracy(labels_of(DERMA), 7) == pytest.approx(0.6688, abs=5e-5)
    with pytest.raises(ValueError, match="no labels"):
        constant_accuracy(np.array([], dtype=int), 7)


# Bootstrap ----------------------------------------------------------------------------------------


def beta_draws(rng: np.random.Generator, n: int, draws: int) -> tuple[Ints, Ints]:
    """Balanced binary labels and draws whose chance of being right differs by image, 0.7 on
    average.
    """
    labels = np.arange(n) % 2
    right = rng.random((n, draws)) < rng.beta(0.7, 0.3, n)[:, None]
    return labels, np.where(right, labels[:, None], 1 - labels[:, None])


def test_bootstrap_equals_naive_resampling_in_distribution() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 60)
    predictions = np.where(rng.random((60, 3)) < 0.6, labels[:, None], rng.integers(-1, 4, (60, 3)))
    seen: list[Floats] = []

    def recorded(tables: Numbers) -> Floats:
        assert np.all(tables[..., 1, :].sum(axis=-1) == 180)
        values = macro_f1(tables)
        seen.append(np.atleast_1d(values))
        return values

    interval = cluster_bootstrap(labels, predictions, 4, recorded, resamples=4000)
    picks = [rng.integers(0, 60, 60) for _ in range(4000)]
    naive = np.array([macro_f1(tally(labels[i], predictions[i], 4)) for i in picks])
    grouped = np.concatenate(seen[1:])
    assert len(grouped) == 4000
    assert ks_2samp(grouped, naive).pvalue > 1e-3
    assert (interval.low, interval.high) == pytest.approx(
        np.quantile(naive, [0.025, 0.975]), abs=0.01
    )
    assert interval.value == macro_f1(tally(labels, predictions, 4))


def test_bootstrap_is_reproducible_and_blind_to_order() -> None:
    labels, predictions = beta_draws(np.random.default_rng(2), 50, 4)
    first = cluster_bootstrap(labels, predictions, 2, macro_f1, 500)
    backwards = np.arange(50)[::-1]
    assert (
        cluster_bootstrap(labels[backwards], predictions[backwards][:, ::-1], 2, macro_f1, 500)
        == first
    )
    assert cluster_bootstrap(labels, predictions, 2, macro_f1, 500, seed=1) != first


def test_bootstrap_gains_nothing_from_repeated_draws() -> None:
    labels, predictions = beta_draws(np.random.default_rng(3), 80, 1)
    once = cluster_bootstrap(labels, predictions, 2, balanced_accuracy, 1000)
    assert (
        cluster_bootstrap(labels, np.repeat(predictions, 20, axis=1), 2, balanced_accuracy, 1000)
        == once
    )
    assert cluster_bootstrap(labels, predictions[:, 0], 2, balanced_accuracy, 1000) == once


def test_bootstrap_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions = beta_draws(np.random.default_rng(4), 30, 2)
    whole = cluster_bootstrap(labels, predictions, 2, macro_f1, 300)
    monkeypatch.setattr("bench.results.statistics._CHUNK_ELEMENTS", 50)
    assert cluster_bootstrap(labels, predictions, 2, macro_f1, 300) == whole


def test_bootstrap_covers_and_unclustered_draws_would_not() -> None:
    rng = np.random.default_rng(5)

    def covers(labels: Ints, predictions: Ints) -> bool:
        interval = cluster_bootstrap(labels, predictions, 2, balanced_accuracy, 500)
        return interval.low <= 0.7 <= interval.high

    cases = [beta_draws(rng, 120, 5) for _ in range(400)]
    clustered = np.mean([covers(labels, predictions) for labels, predictions in cases])
    flat = np.mean(
        [covers(np.repeat(labels, 5), predictions.ravel()) for labels, predictions in cases]
    )
    assert 0.91 < clustered < 0.98
    assert flat < 0.85


# Collapse -----------------------------------------------------------------------------------------


def test_constant_predictor_on_derma_is_collapsed() -> None:
    labels = labels_of(DERMA)
    found = collapsed(labels, constant(labels, 5), 7, None)
    assert found.verdict
    assert found.largest_predicted_share == 1
    assert found.constant_accuracy == pytest.approx(0.6688, abs=5e-5)
    assert found.macro_f1.value == pytest.approx(0.1145, abs=5e-5)
    assert found.balanced_accuracy.value == pytest.approx(1 / 7)
    for sign in (
        "class 5 gets 100.0% of the answers",
        "accuracy 66.88% is that of a constant",
        "balanced accuracy 14.3%",
    ):
        assert sign in found.reason
    assert "gradient" not in found.reason
    assert "images only" not in found.reason


def test_single_class_at_nine_percent_is_collapsed() -> None:
    labels = labels_of(BLOOD)
    predictions = constant(labels, 2)
    assert (predictions[:, 0] == labels).mean() == 311 / 3421
    found = collapsed(labels, predictions, 8, None)
    assert found.verdict
    assert found.constant_accuracy == 666 / 3421
    assert "constant answer" not in found.reason


def test_healthy_classifier_is_not_collapsed() -> None:
    labels = labels_of(DERMA)
    predictions = guesses(labels, 7, 0.8)
    found = collapsed(labels, predictions, 7, 0.3)
    assert not found.verdict
    assert found.reason == ""
    assert found.largest_predicted_share == pytest.approx(0.56, abs=0.03)
    assert found.balanced_accuracy == cluster_bootstrap(labels, predictions, 7, balanced_accuracy)
    assert found.macro_f1 == cluster_bootstrap(labels, predictions, 7, macro_f1)


@pytest.mark.parametrize(("in_one_class", "verdict"), [(950, True), (949, False)])
def test_predicted_share_limit(in_one_class: int, verdict: bool) -> None:
    labels = labels_of([920, 80])
    predictions = constant(labels, 0)
    predictions[-(1000 - in_one_class) :] = 1
    found = collapsed(labels, predictions, 2, None)
    assert found.largest_predicted_share == in_one_class / 1000
    assert found.verdict is verdict
    assert ("% of the answers" in found.reason) is verdict


def test_chance_is_collapsed_however_spread_the_answers_are() -> None:
    labels = labels_of([100] * 10)
    found = collapsed(labels, guesses(labels, 10, 0.0), 10, None)
    assert found.verdict
    assert found.largest_predicted_share < 0.2
    assert found.reason.startswith("balanced accuracy")
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
    ("false_alarms", "found_minority", "verdict"),
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
    false_alarms: int, found_minority: int, verdict: bool
) -> None:
    labels = labels_of([900, 100])
    predictions = constant(labels, 0)
    predictions[:false_alarms] = 1
    predictions[900 : 900 + found_minority] = 1
    found = collapsed(labels, predictions, 2, None)
    assert found.balanced_accuracy.low > 0.6
    assert found.verdict is verdict
    assert ("constant answer" in found.reason) is verdict


@pytest.mark.parametrize(
    ("lost", "verdict"), [(0.0, True), (0.0099, True), (0.01, False), (None, False), (-0.02, True)]
)
def test_gradient_attack_that_takes_nothing_from_a_poor_classifier(
    lost: float | None, verdict: bool
) -> None:
    labels = labels_of([100] * 10)
    predictions = guesses(labels, 10, 0.08)
    accuracy = float((predictions[:, 0] == labels).mean())
    found = collapsed(labels, predictions, 10, None if lost is None else accuracy - lost)
    assert 0.14 < found.macro_f1.value < 0.2
    assert found.verdict is verdict
    assert ("gradient attack" in found.reason) is verdict


def test_an_unmoved_but_good_binary_classifier_is_not_collapsed() -> None:
    labels = labels_of([500, 500])
    good, poor = guesses(labels, 2, 0.8), guesses(labels, 2, 0.3)
    assert not collapsed(labels, good, 2, float((good[:, 0] == labels).mean())).verdict
    assert (
        "gradient attack" in collapsed(labels, poor, 2, float((poor[:, 0] == labels).mean())).reason
    )
    assert not collapsed(labels, poor, 2, 0.0).verdict


def test_three_images_alone_do_not_make_a_collapse() -> None:
    labels = np.array([0, 4, 7])
    wrong = np.array([[1], [2], [3]])
    found = collapsed(labels, wrong, 10, None)
    assert found.balanced_accuracy.high == 0
    assert not found.verdict
    assert found.reason == ""
    same = collapsed(labels, constant(labels, 4), 10, None)
    assert same.verdict
    assert "on 3 images only, where 100 are needed" in same.reason


def test_the_bound_counts_from_ten_images_a_class() -> None:
    labels = np.arange(20) % 2
    assert "balanced accuracy" in collapsed(labels, 1 - labels[:, None], 2, None).reason
    assert collapsed(labels[:19], 1 - labels[:19, None], 2, None).reason == ""


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
    found = collapsed(labels, labels[:, None], 5, 0.5)
    assert not found.verdict
    assert found.macro_f1 == found.balanced_accuracy == Estimate(1, 1, 1)
    assert collapsed(labels, constant(labels, 3), 5, None).verdict


def test_nan_outputs_are_no_class_of_their_own() -> None:
    labels = labels_of([50, 50, 50])
    found = collapsed(labels, constant(labels, NO_CLASS), 3, None)
    assert found.largest_predicted_share == 0
    assert found.verdict
    assert found.reason.startswith("balanced accuracy")


# Verdicts over draws and attacks ------------------------------------------------------------------


def test_worst_case_of_deterministic_verdicts_is_and() -> None:
    first = np.array([[True], [True], [False], [False]])
    second = np.array([[True], [False], [True], [False]])
    assert worst_case([first, second]).tolist() == [1, 0, 0, 0]
    assert worst_case([first]).tolist() == [1, 1, 0, 0]


def test_worst_case_chooses_on_one_half_and_reports_the_other() -> None:
    one = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [1, 1, 0, 1]], dtype=bool)
    two = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]], dtype=bool)
    # Chosen on the even draws (one, two, one by the tie rule) and reported on the odd, then the
    # other way round.
    assert worst_case([one, two]).tolist() == worst_case([two, one]).tolist()
    assert worst_case([one, two]).tolist() == [1.0, 0.75, 0.75]


def test_worst_case_is_not_flattered_by_its_own_choice() -> None:
    rng = np.random.default_rng(6)
    coins = [rng.random((4000, 20)) < 0.5 for _ in range(5)]
    same_draws = np.min([coin.mean(axis=1) for coin in coins], axis=0)
    assert worst_case(coins).mean() == pytest.approx(0.5, abs=0.012)  # 4.7 standard errors
    assert same_draws.mean() < 0.4


def test_worst_case_finds_the_stronger_attack() -> None:
    rng = np.random.default_rng(7)
    weak, strong = rng.random((500, 20)) < 0.9, rng.random((500, 20)) < 0.1
    half = np.arange(500)[:, None] < 250
    assert worst_case(
        [np.where(half, weak, strong), np.where(half, strong, weak)]
    ).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("shapes", [[], [(3, 1), (3, 2)], [(3, 2), (4, 2)], [(3, 0)]])
def test_worst_case_refuses_verdicts_that_do_not_go_together(shapes: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        worst_case([np.ones(shape, dtype=bool) for shape in shapes])


def test_judge_known_answers() -> None:
    correct: npt.NDArray[np.bool_] = np.array(
        [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=bool
    )
    judged = judge(correct)
    assert judged.mean == wilson(2.5, 5)
    assert judged.all_draws == wilson(1, 5)
    assert judged.majority == wilson(2, 5)


def test_judge_of_one_draw_has_one_answer() -> None:
    judged = judge(np.arange(10)[:, None] < 7)
    assert judged.mean == judged.all_draws == judged.majority == wilson(7, 10)
    with pytest.raises(ValueError, match="not empty"):
        judge(np.ones((4, 0), dtype=bool))


def test_a_tie_on_the_choosing_draws_goes_to_the_attack_that_is_stronger_overall():
    """Both attacks break image 0 on every even draw; only the one that also breaks image 1 breaks
    its odd draws.
    """
    weak = np.array([[False, True] * 5, [True, True] * 5])
    strong = np.zeros((2, 10), dtype=bool)
    for order in ([weak, strong], [strong, weak]):
        assert worst_case(order).tolist() == [0.0, 0.0]
