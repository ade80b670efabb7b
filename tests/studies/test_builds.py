"""What the studies of several builds share, on builds whose answers are known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.engine.plan import plan
from bench.engine.request import Request
from bench.report.compare import by_build, comparison
from bench.results.outcomes import Outcomes
from bench.studies import builds
from bench.studies.study import StudySetting
from tests import toy_plugins  # noqa: F401
from tests.studies.helpers import QUICK, study
from tests.toys import message


def outcomes(adversarial, clean=None):
    """Of images of class 0; 0 is a right answer."""
    answers = np.array(adversarial)[:, None]
    clean = np.zeros_like(answers) if clean is None else np.array(clean)[:, None]
    n = len(answers)
    return Outcomes.of(3, np.arange(n), np.zeros(n, int), clean, answers, np.empty((n, 0), int))


@pytest.fixture
def evaluation(setting):
    return plan(Request(defenses=("undefended",), attacks=("pgd:steps=2",)), setting.setup)[0]


def test_tables_of_known_answers(evaluation):
    """The second defense loses nine images of the first in the one build, and wins one in the
    other.
    """
    first = builds.scored(
        evaluation, [outcomes([0] * 20 + [1] * 10), outcomes([0] * 15 + [1] * 15)]
    )
    second = builds.scored(
        evaluation,
        [outcomes([1] * 9 + [0] * 11 + [1] * 10), outcomes([0] * 16 + [1] * 14, [0] * 29 + [2])],
    )
    one, other = comparison([first, second]).to_dict("records")
    assert (one["clean"], one["robust"]) == pytest.approx((1, 35 / 60)) and math.isnan(
        one["difference"]
    )
    assert (other["clean"], other["robust"], other["difference"]) == pytest.approx(
        (59 / 60, 27 / 60, -8 / 60)
    )
    assert (other["lower"], other["higher"]) == (1, 0)
    assert other["difference_low"] < other["difference"] < other["difference_high"]
    rows = by_build([first, second]).to_dict("records")
    assert all(math.isnan(row[name]) for row in rows[:2] for name in ("lost", "won", "p", "p_holm"))
    assert [(row["lost"], row["won"]) for row in rows[2:]] == [(9, 0), (0, 1)]
    assert [row["p"] for row in rows[2:]] == pytest.approx([2 / 2**9, 1])
    assert [row["p_holm"] for row in rows[2:]] == pytest.approx([4 / 2**9, 1])


def test_a_wrong_clean_answer_is_not_robust_and_a_constant_is_seen(evaluation):
    (spoiled,) = builds.scored(evaluation, [outcomes([0] * 30, [1] * 6 + [0] * 24)]).robust
    assert spoiled.sum() == 24
    labels = np.arange(60) % 3
    one_class = Outcomes.of(
        3,
        np.arange(60),
        labels,
        np.zeros((60, 1), int),
        np.zeros((60, 1), int),
        np.empty((60, 0), int),
    )
    assert builds.scored(evaluation, [one_class]).collapsed == [True]
    assert builds.scored(evaluation, [outcomes([0] * 20 + [1] * 10)]).collapsed == [False]


def test_builds_have_seeds_of_their_own(setting):
    seeds = [
        builds.planned(setting, ("toy-jitter",), "pgd", build)[0].build_seed for build in range(3)
    ]
    assert seeds == [0, 1, 2]
    again = StudySetting(Request(n=30, seeds=(1,)))
    vars(again)["setup"] = setting.setup
    (evaluation,) = builds.planned(again, ("toy-jitter",), "pgd", 2)
    assert (evaluation.build_seed, evaluation.seed) == (1002, 1)


def test_builds_of_a_trained_defense_differ(setting):
    params = builds.BuildsParams(builds=2, attack="noise")
    (scores,) = builds.attacked(setting, (f"datafreeshield:{QUICK}",), params)
    assert scores.robust.shape == (2, 30) and not np.array_equal(scores.robust[0], scores.robust[1])


def test_a_random_defense_counts_by_its_share_of_draws(setting):
    (scores,) = builds.attacked(
        setting, ("toy-jitter:sigma=0.4",), builds.BuildsParams(builds=1, attack="noise")
    )
    assert (
        len(set(scores.clean[0])) > 2
        and len(set(scores.robust[0])) > 2
        and np.array_equal(scores.right[0], scores.robust[0] > 0.5)
    )


def test_the_identity_holds_what_the_defenses_see(setting):
    one = study("ablation:defenses=undefended+toy-honest")
    assert list(one.sources(setting)) == ["toy-honest: training data"]
    assert set(one.plugins()) == {"attack", "undefended", "toy-honest"}
    assert one.plugins()["attack"]["params"]["steps"] == 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ablation:defenses=undefended", "at least 2"),
        ("ablation:builds=0", "greater than or equal to 1"),
        ("quantity:values=4", "at least 2"),
        ("quantity:values=8+4", "smallest first"),
        ("quantity:values=4+4", "smallest first"),
    ],
)
def test_bad_parameters_are_refused(text, said):
    assert said in message(lambda: study(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ablation:defenses=undefended+no-such-defense", "no-such-defense"),
        ("ablation:attack=pgdd", "pgdd"),
        ("quantity:field=imges", "imges"),
        ("quantity:field=images,values=2.5+3", "valid integer"),
        ("time:defenses=no-such-defense", "no-such-defense"),
    ],
)
def test_bad_specs_are_refused_before_anything_is_built(text, said):
    assert said in message(lambda: study(text).plugins())


def test_several_processes_attack_the_builds_as_one_does(setting):
    params = builds.BuildsParams(builds=2, attack="pgd:steps=2")
    specs = ("undefended", "toy-jitter")
    one, two = (
        list(builds.attacked(replace(setting, workers=workers), specs, params))
        for workers in (1, 2)
    )
    for alone, shared in zip(one, two, strict=True):
        assert np.array_equal(alone.robust, shared.robust)
        assert np.array_equal(alone.clean, shared.clean)
