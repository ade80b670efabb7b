"""Studies that build defenses several times, on builds whose answers are known; and the counts of
the study `time`.
"""

import math

import numpy as np
import pytest
import torch
from bench_defenses.adversarial.objectives import OBJECTIVES
from bench_defenses.adversarial.trainer import Schedule, passes
from statsmodels.stats.contingency_tables import mcnemar as reference

from bench.contract.check import setup_in_memory
from bench.contract.toys import SmallNet, gratings
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.models.classifier import Classifier
from bench.noise import Noise, isolated
from bench.plugins.create import STUDIES, create
from bench.report.compare import by_build, comparison
from bench.results.estimate import Estimate
from bench.results.outcomes import Outcomes
from bench.results.verdicts import gap_over_builds, mcnemar, mean_over_builds, share
from bench.spec import parse
from bench.storage.artifacts import cache_root, empty_cache
from bench.studies import builds, synthetic, timing
from bench.studies.study import StudySetting
from tests import toy_plugins  # noqa: F401
from tests.toys import message

GENERATOR = np.random.Generator(np.random.Philox(0))
QUICK = "images=30,iterations=10,synthesis_batch=10,epochs=2,batch=10,group=1"


# Statistics over builds


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 1), (10, 2), (7, 7)])
def test_mcnemar_is_exact(lost, won):
    a = np.repeat([True, False, True, False], [lost, won, 20, 9])
    b = np.repeat([False, True, True, False], [lost, won, 20, 9])
    assert mcnemar(a, b) == pytest.approx(reference([[20, lost], [won, 9]], exact=True).pvalue)
    assert mcnemar(a, b) == mcnemar(b, a)


def test_verdicts_on_other_images_are_refused():
    with pytest.raises(ValueError, match="not of the same images"):
        mcnemar(np.ones(2, bool), np.ones(3, bool))
    with pytest.raises(ValueError, match="not of the same builds"):
        gap_over_builds(np.ones((2, 3)), np.ones((1, 3)))


def test_equal_builds_leave_the_images_interval():
    one = np.repeat([1.0, 0.0], [30, 70])
    found, over_images = mean_over_builds(np.stack([one] * 3)), share(one)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((over_images.low, over_images.high), abs=0.01)
    assert found.low <= over_images.low and found.high >= over_images.high
    never = mean_over_builds(np.zeros((3, 100)))
    assert (never.value, never.low, never.high) == (0, 0, share(np.zeros(100)).high)


def test_builds_that_differ_widen_the_interval():
    """Each build is all right or all wrong, so only builds vary: Student's interval of eight
    numbers.
    """
    scores = np.repeat([[1.0], [0.0]], 4, axis=0) * np.ones((8, 500))
    found = mean_over_builds(scores)
    error = scores.mean(axis=1).std(ddof=1) / math.sqrt(8)
    assert found.high - found.low == pytest.approx(2 * 2.3646 * error, rel=0.1)
    # The difference between two such defenses is as uncertain, although within each pair of builds
    # all images agree.
    gap = gap_over_builds(scores, np.where(np.arange(500) < 250, 1.0, 0.0) * np.ones((8, 1)))
    assert gap.high - gap.low >= found.high - found.low - 0.02


def test_a_difference_is_paired():
    """Images decide, and the second defense loses the same twentieth everywhere: the interval is
    that of the twentieth.
    """
    one = np.stack([(GENERATOR.random(400) < 0.5).astype(float)] * 3)
    other = one * (np.arange(400) >= 20)
    found = gap_over_builds(other, one)
    assert found.low < found.value < found.high < 0 and found.high - found.low < 0.06
    assert gap_over_builds(one, one) == Estimate(0, 0, 0)
    flat = gap_over_builds(np.zeros((3, 400)), np.zeros((3, 400)))
    assert flat.value == 0 and -0.02 < flat.low < 0 < flat.high < 0.02


def test_intervals_hold_what_they_say():
    """Three builds whose accuracies scatter by 5 points around 0.5; resampled as they are, they
    hold it in four of five cases.
    """
    held = 0
    for trial in range(150):
        generator = np.random.Generator(np.random.Philox(trial))
        accuracy = 0.5 + 0.05 * generator.normal(size=(3, 1))
        scores = (generator.random((3, 1000)) < accuracy).astype(float)
        found = mean_over_builds(scores, resamples=400, seed=trial)
        held += found.low <= 0.5 <= found.high
    assert held >= 0.92 * 150


# Studies


@pytest.fixture(scope="module")
def setting():
    made = StudySetting(Request(n=30))
    test, train = gratings(30, 60), gratings(60)
    vars(made)["setup"] = setup_in_memory(Classifier(SmallNet(train), 3).eval(), test, train)
    return made


def study(text):
    return create(STUDIES, parse(text)).plugin


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
    first = builds._gathered(
        evaluation, [outcomes([0] * 20 + [1] * 10), outcomes([0] * 15 + [1] * 15)]
    )
    second = builds._gathered(
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
    (mended,) = builds._gathered(evaluation, [outcomes([0] * 30, [1] * 6 + [0] * 24)]).robust
    assert mended.sum() == 24
    labels = np.arange(60) % 3
    one_class = Outcomes.of(
        3,
        np.arange(60),
        labels,
        np.zeros((60, 1), int),
        np.zeros((60, 1), int),
        np.empty((60, 0), int),
    )
    assert builds._gathered(evaluation, [one_class]).collapsed == [True]
    assert builds._gathered(evaluation, [outcomes([0] * 20 + [1] * 10)]).collapsed == [False]


def test_an_ablation_of_equal_variants_finds_nothing(setting):
    result = study(
        "ablation:defenses=undefended+undefended+(bit-depth:bits=8),builds=2,attack=(bpda:steps=3)"
    ).run(setting)
    table = result.tables["ablation"]
    assert table["difference"].tolist()[1:] == [0, 0] and table["lower"].tolist()[1:] == [0, 0]
    assert (table["difference_low"].iloc[1:] <= 0).all() and (
        table["difference_high"].iloc[1:] >= 0
    ).all()
    assert result.tables["builds"]["p"].iloc[2:].eq(1).all() and len(result.tables["builds"]) == 6
    assert result.scale == "2 builds of 3 defenses, 30 images, bpda:steps=3" and set(
        result.figures
    ) == {"ablation"}
    assert "undefended has" in result.sentence and "bit-depth" in result.sentence


def test_builds_have_seeds_of_their_own(setting):
    seeds = [
        builds.planned(setting, ("toy-jitter",), "pgd", build)[0].build_seed for build in range(3)
    ]
    assert seeds == [0, 1, 2]
    again = StudySetting(Request(n=30, seeds=(1,)))
    vars(again)["_subject"] = setting.setup
    (evaluation,) = builds.planned(again, ("toy-jitter",), "pgd", 2)
    assert (evaluation.build_seed, evaluation.seed) == (1002, 1)


def test_builds_of_a_trained_defense_differ(setting):
    params = builds.BuildsParams(builds=2, attack="noise")
    (found,) = builds.attacked(setting, (f"datafreeshield:{QUICK}",), params)
    assert found.robust.shape == (2, 30) and not np.array_equal(found.robust[0], found.robust[1])


def test_a_random_defense_counts_by_its_share_of_draws(setting):
    (found,) = builds.attacked(
        setting, ("toy-jitter:sigma=0.4",), builds.BuildsParams(builds=1, attack="noise")
    )
    assert (
        len(set(found.clean[0])) > 2
        and len(set(found.robust[0])) > 2
        and np.array_equal(found.right[0], found.robust[0] > 0.5)
    )


def test_the_identity_holds_what_the_defenses_see(setting):
    one = study("ablation:defenses=undefended+toy-honest")
    assert list(one.sources(setting)) == ["toy-honest: training data"]
    assert set(one.plugins()) == {"attack", "undefended", "toy-honest"}
    assert one.plugins()["attack"]["params"]["steps"] == 20


def test_a_number_takes_each_value(setting):
    one = study(
        "quantity:defense=(toy-jitter:sigma=1),field=sigma,values=0+0.5+8,builds=2,attack=noise"
    )
    assert one.specs() == ("toy-jitter:sigma=0", "toy-jitter:sigma=0.5", "toy-jitter:sigma=8")
    result = one.run(setting)
    table = result.tables["quantity"]
    assert (
        table["sigma"].tolist() == [0, 0.5, 8]
        and table["robust"].is_monotonic_decreasing
        and table["robust"].iloc[0] > 0.9
    )
    assert table["lower"].tolist()[1:] == [2, 2] and "defense" not in table
    assert set(result.figures) == {"quantity"} and result.sentence.startswith(
        "Robust accuracy in percent by sigma: "
    )
    assert (
        study("quantity").specs()[1]
        == "datafreeshield:batch=50,epochs=10,group=2,images=250,iterations=150,synthesis_batch=50"
    )


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


def test_short_names_keep_nested_specs_whole():
    specs = ["d:a=1,objective=(o:x=1,y=2)", "d:a=1,objective=(o:x=1,y=3)"]
    assert list(synthetic.short_names(specs).values()) == [
        "objective=(o:x=1,y=2)",
        "objective=(o:x=1,y=3)",
    ]


# Passes


def test_passes_are_told_apart():
    noise = Noise.of(0, "build", range(3))
    with isolated(0):
        net, images = Classifier(torch.nn.Linear(2, 2), 2), noise.uniform("images", (2,))
    with timing.counted(Classifier) as found:
        net(images[:1], noise.rows(slice(0, 1)))
        net(images, noise).sum().backward()
        torch.autograd.grad(net(images.requires_grad_(), noise).sum(), images)
        with torch.no_grad():
            net(images, noise)
    net(images, noise)
    assert (found.forwards, found.input_backwards, found.weight_backwards) == (
        10,
        3,
        3,
    ) and found.seconds > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("preset", ["honest", "repo-general"])
def test_training_takes_the_claimed_passes(setting, objective, preset):
    """Beyond them the teacher answers each image once, and one image goes through to see that it
    can.
    """
    spec = f"datafreeshield:{QUICK},objective={objective},preset={preset},targets=balanced,steps=3"
    synthesis, training = timing.stages(setting, spec)
    for stage in (synthesis, training):
        assert stage["input_backwards"] == stage["input_backwards_claimed"]
        assert stage["weight_backwards"] == stage["weight_backwards_claimed"]
    # Ten iterations, one look at the kept one, its answers before and after clamping.
    assert synthesis["forwards"] * 10 == pytest.approx(10 + 1 + 2 + 1 / 30)
    assert training["forwards"] * 2 == pytest.approx(2 * training["forwards_claimed"] + 1 + 1 / 30)


def test_an_image_visit_takes_thirteen_forwards():
    counts = passes(OBJECTIVES["datafreeshield"](), Schedule(epochs=1, batch=1))
    assert counts == {"forwards": 13, "input_backwards": 10, "weight_backwards": 2}
    assert passes(OBJECTIVES["pgd-at"](), Schedule(epochs=1, batch=1))["forwards"] == 11


def test_the_study_of_time_measures_anew(setting):
    texts = f"(datafreeshield:{QUICK})+(datafreeshield:{QUICK},epochs=1)".replace(
        ",epochs=2,batch=10,group=1,epochs=1", ",epochs=1,batch=10"
    )
    results = [study(f"time:defenses={texts}").run(setting) for _ in range(2)]
    for result in results:
        table = result.tables["time"]
        assert table["stage"].tolist() == ["synthesis", "training"] * 2 and table[
            "visits"
        ].tolist() == [10, 2, 10, 1]
        assert (table["forwards"] >= table["forwards_claimed"]).all() and (
            table["seconds"] > 0
        ).all()
    assert "synthesis of " in results[0].sentence and "10000 images" in results[0].sentence


def test_time_is_for_defenses_that_say_what_they_cost(setting):
    assert "trains on no images of its own making" in message(
        lambda: study("time:defenses=bit-depth").run(setting)
    )
    maker = type("Maker", (), {"training_images": lambda *_: None})()
    assert "claimed_passes" in message(lambda: timing.check_claims(maker, "maker"))


def test_an_empty_cache_goes_as_it_came(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    with empty_cache():
        inside = cache_root()
        assert inside != tmp_path and not list(inside.iterdir())
    assert cache_root() == tmp_path and not inside.exists()
    monkeypatch.delenv("BENCH_CACHE")
    with pytest.raises(KeyError), empty_cache():
        raise KeyError
    assert cache_root().name == "adversarial-bench"
