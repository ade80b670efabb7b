"""Studies of images that a defense makes itself, on sets whose answers are known."""

import numpy as np
import pytest
import torch

from bench.contract.check import setup_in_memory
from bench.contract.toys import SmallNet, gratings
from bench.engine.request import Request
from bench.models.classifier import Classifier
from bench.plugins.create import STUDIES, create
from bench.spec import parse
from bench.studies import diversity, leakage, sets, synthesis, synthetic, toy
from bench.studies.study import StudySetting
from bench.studies.synthesis import mosaic as synthetic_mosaic
from tests.toys import message

GENERATOR = np.random.Generator(np.random.Philox(0))
CLOUD = GENERATOR.normal(size=(400, 2))
SELF_MADE = "(datafreeshield:images=30,iterations=20,synthesis_batch=10)"


# Sets of points


def test_coverage_and_recall_of_four_points():
    real = np.array([[0.0, 0], [1, 0], [10, 0], [12, 0]])
    made = np.array([[0.5, 0], [0.6, 0], [20, 0]])
    assert sets.coverage(real, made, 1).tolist() == [True, True, False, False]
    # The balls of made points have radii 0.1, 0.1 and 19.4.
    assert sets.recall(real, made, 1).tolist() == [False, True, True, True]
    assert sets.radii(real, 2).tolist() == [10, 9, 9, 11]
    assert sets.nearest(made, real) == pytest.approx([0.5, 0.4, 8])


def test_equal_laws_cover_each_other_and_a_collapsed_set_does_not():
    other, point = (
        GENERATOR.normal(size=(400, 2)),
        np.zeros((400, 2)) + 1e-3 * GENERATOR.normal(size=(400, 2)),
    )
    assert sets.coverage(CLOUD, other).mean() > 0.9 and sets.recall(CLOUD, other).mean() > 0.9
    assert sets.coverage(CLOUD, point).mean() < 0.1 and sets.recall(CLOUD, point).mean() < 0.1
    # One far point with a wide ball raises recall and not coverage.
    stray = np.concatenate([point, [[100.0, 0], [-100, 0], [0, 100], [0, -100], [90, 90]]])
    assert sets.recall(CLOUD, stray).mean() > 0.5 and sets.coverage(CLOUD, stray).mean() < 0.1


def test_k_means_finds_far_clusters():
    points = np.concatenate([CLOUD * 0.01 + centre for centre in ([0.0, 0], [5, 5], [-5, 5])])
    found = min(
        (sets.k_means(points, 3, seed) for seed in range(5)),
        key=lambda c: sets.nearest(points, c).sum(),
    )
    assert sorted(found.round(1).tolist()) == [[-5.0, 5.0], [-0.0, 0.0], [5.0, 5.0]]
    assert np.bincount(sets.binned(points, found)).tolist() == [400] * 3
    assert np.array_equal(sets.k_means(points, 3, 1), sets.k_means(points, 3, 1))


def test_bins_of_two_histograms():
    real, made = np.repeat([0, 1], [50, 50]), np.repeat([0, 2], [50, 50])
    found = sets.compare_bins(real, made, 3)
    assert found.different == pytest.approx(2 / 3)
    assert found.divergence == pytest.approx(0.5)
    assert sets.compare_bins(real, real, 3) == sets.Bins(0.0, pytest.approx(0.0))
    assert sets.compare_bins(np.zeros(9, int), np.ones(9, int), 2).divergence == pytest.approx(1.0)
    # z of 60 against 46 in 100 is 1.984, of 60 against 47 1.842.
    for share, different in ((46, 1.0), (47, 0.0)):
        few = np.repeat([0, 1], [share, 100 - share])
        assert sets.compare_bins(np.repeat([0, 1], [60, 40]), few, 2).different == different


def test_spread_within_clusters():
    wide = np.concatenate([CLOUD * (1.0, 2.0) + centre for centre in ([0.0, 0], [50, 0])])
    assert sets.residual(wide, 2) == pytest.approx(
        np.square(CLOUD * (1.0, 2.0) - (CLOUD * (1.0, 2.0)).mean(0)).sum(1).mean()
    )
    assert sets.mixture_variance(wide, 2) == pytest.approx(
        (CLOUD * (1.0, 2.0)).var(0).sum(), rel=1e-6
    )
    assert sets.mixture_variance(wide * 2, 2) == pytest.approx(4 * sets.mixture_variance(wide, 2))


def test_a_mixture_tells_overlapping_laws_from_one():
    """Where hard bins cut both tails off, the mixture does not."""
    near = np.concatenate([CLOUD[:, :1], CLOUD[:, :1] + 3])
    assert sets.residual(near, 2) < 0.85 < sets.mixture_variance(near, 2) < 1.25


def test_principal_components():
    mean, directions = sets.principal(np.pad(CLOUD * (1, 5), ((0, 0), (1, 0))) + 7)
    assert mean == pytest.approx([7, *(7 + CLOUD.mean(0) * (1, 5))])
    assert np.allclose(directions.T, [[0, 0, 1], [0, 1, 0]], atol=0.1)


def test_area_under_the_curve():
    assert sets.area_under_curve(np.array([3.0, 1]), np.array([2.0, 1])) == pytest.approx(
        (1 + 1 + 0 + 0.5) / 4
    )
    assert sets.area_under_curve(CLOUD[:, 0] + 10, CLOUD[:, 1]) == 1
    low, high = sets.area_interval(CLOUD[:, 0] + 0.3, CLOUD[:, 1], resamples=200)
    assert 0.5 < low < sets.area_under_curve(CLOUD[:, 0] + 0.3, CLOUD[:, 1]) < high < 0.68


# Studies


@pytest.fixture(scope="module")
def setting():
    made = StudySetting(Request(n=30))
    test, train = gratings(30, 60), gratings(60)
    vars(made)["setup"] = setup_in_memory(Classifier(SmallNet(train), 3).eval(), test, train)
    return made


def answer(text, setting):
    study = create(STUDIES, parse(text)).plugin
    assert study.plugins()
    return study.run(setting)


def test_the_images_are_those_that_the_defense_trains_on(setting):
    (made,) = synthetic.make(setting, (SELF_MADE[1:-1],))
    assert made.images.shape == (30, 3, 16, 16) and torch.bincount(made.labels).tolist() == [10] * 3
    (again,) = synthetic.make(setting, (SELF_MADE[1:-1],))
    assert torch.equal(made.images, again.images)
    assert "trains on no images of its own making" in message(
        lambda: list(synthetic.make(setting, ("bit-depth",)))
    )


def test_specs_are_told_apart_by_what_differs():
    assert synthetic.short_names(["d:a=1,b=2", "d:a=1,b=3"]) == {
        "d:a=1,b=2": "b=2",
        "d:a=1,b=3": "b=3",
    }
    assert synthetic.short_names(["d", "d:b=3"]) == {"d": "d", "d:b=3": "b=3"}
    assert synthetic.short_names(["d:a=1"]) == {"d:a=1": "d, a=1"}


def test_the_study_of_diversity_ranks_real_above_noise(setting):
    result = answer(f"diversity:defenses={SELF_MADE},embedding=pixels,bins=10", setting)
    table = result.tables["diversity"].set_index("images")
    assert table.loc["test images", "coverage"] > 0.5 > table.loc[SELF_MADE[1:-1], "coverage"]
    assert table["n"].tolist() == [30, 30] and set(result.figures) == {"map"}
    assert (
        result.sentence.startswith("Of the training images (pixels, k = 5)") and result.held is None
    )


def test_the_study_of_synthesis_asks_the_classifier(setting, monkeypatch):
    test = setting.setup.images
    black = torch.zeros(3, 3, 16, 16)
    sets_of = [
        synthetic.Made("d:right=1", test.pixels(), test.labels),
        synthetic.Made("d:black=1", black, torch.tensor([0, 1, 2])),
    ]
    monkeypatch.setattr(synthesis, "make", lambda *_: sets_of)
    result = answer(f"synthesis:defenses={SELF_MADE}", setting)
    right, dark = result.tables["synthesis"].to_dict("records")
    assert right["as_meant"] == 1 and right["n"] == 30 and dark["as_meant"] == pytest.approx(1 / 3)
    assert (
        dark["extreme_pixels"] == 1
        and right["extreme_pixels"] < 0.1
        and set(result.figures) == {"sheet"}
    )
    assert (
        result.sentence
        == "The classifier gives the class aimed at on 100.0 % of 30 (right=1), 33.3 % of 3 "
        "(black=1)."
    )


def test_a_mosaic_has_a_row_a_class():
    picture = synthetic_mosaic(torch.zeros(3, 1, 4, 4), torch.tensor([1, 0, 1]))
    assert (
        picture.shape == (12, 60)
        and picture[:6, 6:].min() == 1
        and picture[6:, :12].min() == 0
        and picture[6:, 12:].min() == 1
    )


def test_the_study_of_diversity_needs_features_where_asked(setting):
    assert {"coverage", "ndb"} <= set(
        answer(f"diversity:defenses={SELF_MADE}", setting).tables["diversity"]
    )


def test_the_study_of_leakage_sees_stolen_images(setting, monkeypatch):
    train = setting.setup.dataset.plugin.train().pixels()[:30]
    stolen = [
        synthetic.Made("stolen", train, torch.zeros(30)),
        synthetic.Made("own", 1 - train, torch.zeros(30)),
    ]
    monkeypatch.setattr(leakage, "make", lambda *_: stolen)
    result = answer(f"leakage:defenses={SELF_MADE}", setting)
    rows = result.tables["membership"].set_index("score")
    assert (
        rows.loc["stolen", "auc"] == 1
        and rows.loc["own", "auc_low"] < 0.5 < rows.loc["own", "auc_high"]
    )
    distances = result.tables["distances"].set_index("images")
    assert (
        distances.loc["stolen", "nearer_to_training"] == 1
        and distances.loc["stolen", "median_ratio"] < 1e-5
    )
    assert len(rows) == 3 and rows["n"].eq(30).all() and "Membership AUC" in result.sentence


def test_the_toy_counts_more_strays_under_drawn_coefficients():
    same = (
        "images=256,synthesis_batch=32,iterations=100,targets=per_batch,space=normalised,keep=last"
    )
    result = answer(
        f"toy:repeats=1,defenses=(datafreeshield:{same},coefficients=fixed)+(datafreeshield:"
        f"{same})",
        StudySetting(),
    )
    fixed, drawn = result.tables["toy"].to_dict("records")
    assert (
        drawn["wrong_0"] + drawn["wrong_1"] > fixed["wrong_0"] + fixed["wrong_1"]
        and fixed["of"] == 128
    )
    assert all(0 < row["coverage"] < 0.5 and 0 < row["distance"] < 1 for row in (fixed, drawn))
    assert set(result.figures) == {"points"} and "coverage" in result.sentence


def test_moons_lie_in_the_middle_and_are_learned():
    noise = toy.Noise.of(0, toy.Stream.BUILD, [0])
    real, labels = toy.moons(noise)
    assert real.shape == (2000, 2, 1, 1) and bool(((real > 0.15) & (real < 0.85)).all())
    upper = real[labels == 0][:, :, 0, 0]
    # Radius 1 about (0, 0), which lies at (0.5 - 0.5 / 6, 0.5 - 0.25 / 6).
    radius = 6 * torch.linalg.vector_norm(
        upper - torch.tensor([0.5 - 0.5 / 6, 0.5 - 0.25 / 6]), dim=1
    )
    assert float(radius.mean()) == pytest.approx(1, abs=0.02) and float(
        radius.std()
    ) == pytest.approx(0.1, abs=0.01)
    classifier = toy.learned(real, labels, noise)
    assert float((toy.answers_of(classifier, real) == labels).float().mean()) > 0.98


def test_the_measures_need_no_features_of_one_set():
    found = diversity.measures(CLOUD, CLOUD, diversity.DiversityParams(), 3, 0)
    assert found["coverage"] == found["recall"] == 1 and found["ndb"] == found["jsd"] == 0
