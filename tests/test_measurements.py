"""Studies of purifying defenses: known answers on the exact Gaussian denoiser, whose chain is
linear.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from bench.cli import execute
from bench.contract.check import built_in_setup, setup_in_memory
from bench.data.dataset import ImageSet
from bench.diffusion.model import linear_alpha_bar
from bench.engine.request import Request
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.plugins.create import STUDIES, create
from bench.results.statistics import bootstrap_mean
from bench.spec import Params, Specs, canonical, parse, read_params, spelled_out
from bench.studies import direction, gradients, overhead, projection, quality
from bench.studies.deployed import Search, SearchParams, columns, deploy, diffusion_model, features
from bench.studies.store import StudyRecord, find
from bench.studies.study import StudySetting
from bench.threat import ThreatModel
from tests.test_purification import closed_form
from tests.toys import message

ROOT = Path(__file__).parents[1]
MEAN, STD = 0.1, 0.5  # in diffusion space
MODEL = "model=(gaussian:channels=3,side=16,mean=0.55,std=0.25)"
DIFFPURE, REVPURE = f"(diffpure:steps=4,{MODEL})", f"(revpure:steps=4,{MODEL})"


class TwoClasses(nn.Module):
    """A linear model of two classes: every gradient of its cross-entropy has one direction, up to
    the label's sign.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(2, 768, generator=torch.Generator().manual_seed(0)) / 30
        )

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def setting(setup=None, **given) -> StudySetting:
    request = Request(
        **{name: given.pop(name) for name in tuple(given) if name in Request.model_fields}
    )
    made = StudySetting(request, **given)
    vars(made)["setup"] = setup or built_in_setup()
    return made


def linear_setup(n: int = 6):
    images = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 0.6 + 0.2
    found = ImageSet(images, torch.arange(n) % 2, np.arange(n))
    return setup_in_memory(Classifier(TwoClasses(), 2).eval(), found, found)


def answer(text: str, where: StudySetting | None = None):
    return create(STUDIES, parse(text)).plugin.run(where or setting())


# What they share ----------------------------------------------------------------------------------


class Listed(Params):
    defenses: Specs = ("a",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:defenses=a", ("a",)),
        ("x:defenses=a+b-c", ("a", "b-c")),
        ("x:defenses=(a:k=1,j=2)", ("a:k=1,j=2",)),
        ("x:defenses=(a:k=1,j=2)+b+(c:m=(d:e=1+2))", ("a:k=1,j=2", "b", "c:m=(d:e=1+2)")),
        ("x:defenses=b+(a:k=1)", ("b", "a:k=1")),
    ],
)
def test_lists_of_specs_survive_as_text(text, expected):
    params = read_params(Listed, parse(text), "it")
    assert params.defenses == expected
    for printed in (canonical("x", params), spelled_out("x", params)):
        assert read_params(Listed, parse(printed), "it") == params


def test_a_mean_has_its_bootstrap_interval():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap_mean(np.array([*values, np.nan]))
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(
        values.mean() - half, abs=0.03
    ) and found.high == pytest.approx(values.mean() + half, abs=0.03)
    assert found == bootstrap_mean(values)
    nothing = bootstrap_mean(np.array([np.nan]))
    assert math.isnan(nothing.value)
    one = bootstrap_mean(np.array([0.5]))
    assert columns("x", one) == {"x": 0.5, "x_low": 0.5, "x_high": 0.5}


@pytest.mark.parametrize(
    ("spec", "times"),
    [
        ("diffpure:t=100,steps=2", [-1, 99, 49, -1]),
        ("diffpure:t=100,steps=2,rounds=2", [-1, 99, 49, -1, 99, 49, -1]),
        ("revpure:t=100,steps=4", [99, 74, 49, 24, -1]),
        ("gdmp:t=30,steps=2,rounds=2", [-1, 30, 14, -1, 30, 14, -1]),
        ("gradual:t=10+20,steps=1", [-1, 9, -1, 19, -1]),
    ],
)
def test_the_view_times_tells_the_index_of_each_state(spec, times):
    (one,) = deploy(setting(), [spec], ["states", "times"])
    noise = one.victim().random(one.rows)
    found = one.classifier.forward_pass("full", "times")(one.images, noise)
    assert found.tolist() == [times] * 12
    states = one.classifier.forward_pass("full", "states")(one.images, noise)
    assert states.shape[:2] == found.shape
    if times[0] == -1:
        assert torch.allclose(states[:, 0], 2 * one.images - 1)


def test_the_climb_stays_in_the_ball_and_stops_at_a_success():
    (one,) = deploy(setting(), [DIFFPURE[1:-1]])
    victim = one.victim("replay")
    found = Search(SearchParams(steps=5))(victim, one.images, one.labels, one.setup.threat)
    assert (
        bool(one.setup.threat.contains(found.points, one.images).all()) and found.reprojected == 0
    )
    assert found.predictions.shape == (12, 1) and bool((found.points != one.images).any())
    broken = found.predictions[:, 0] != one.labels
    assert bool((victim.forwards[broken] <= 7).all())


def test_a_study_takes_fewer_images_where_none_are_asked_for():
    assert len(StudySetting(default_n=7).setup.images) == 7
    assert len(StudySetting(Request(n=9), default_n=7).setup.images) == 9
    assert len(StudySetting(default_n=10**6).setup.images) == 1000


def test_defenses_that_do_not_fit_are_refused():
    where = setting()
    assert "does not offer the view 'purified'" in message(
        lambda: answer("direction:defenses=undefended", where)
    )
    assert "no other tapes" in message(
        lambda: answer(f"direction:defenses=(revpure:sampler=ddim,{MODEL})", where)
    )
    assert "does not offer the view 'purified'" in message(
        lambda: answer("projection:defenses=bit-depth", where)
    )
    small = "(diffpure:steps=2,resize=true,model=(gaussian:channels=3,side=8))"
    assert "resizes its images" in message(
        lambda: answer(f"projection:defenses={small},steps=1", where)
    )
    setup = built_in_setup()
    object.__setattr__(setup, "threat", ThreatModel("l2", 0.5))
    for name in ("direction", "gradients"):
        assert "Linf ball" in message(lambda name=name: answer(name, setting(setup)))
    for call in (
        "direction:points=1",
        "gradients:draws=0",
        "projection:steps=0",
        "quality:samples=1999",
        "direction:defenses=",
    ):
        message(lambda call=call: create(STUDIES, parse(call)))


# Direction ----------------------------------------------------------------------------------------


def test_agreement_is_the_mean_off_diagonal_of_corrcoef():
    vectors = np.random.default_rng(0).normal(size=(7, 50)) + np.linspace(0, 2, 50) + 3
    off = ~np.eye(7, dtype=bool)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = direction.agreement(vectors)
    assert found["pearson"] == pytest.approx(np.corrcoef(vectors)[off].mean(), abs=1e-12)
    assert found["cosine"] == pytest.approx((units @ units.T)[off].mean(), abs=1e-12)
    assert direction.agreement(np.ones((3, 4)) * [1, 2, 3, 4]) == {
        "pearson": pytest.approx(1),
        "cosine": pytest.approx(1),
    }
    assert math.isnan(direction.agreement(np.ones((3, 4)))["pearson"])


@pytest.mark.parametrize(("kind", "t"), [("diffpure", 200), ("diffpure", 60), ("revpure", 200)])
def test_directions_of_a_linear_chain_have_their_closed_form(kind, t):
    """z -> slope z + offset + noise of a known variance: the common part of all changes against the
    part that differs.
    """
    where, points = setting(), 40
    slope, _, variance = closed_form(t, 4, MEAN, STD)
    if kind == "revpure":
        slope, variance = (
            slope / math.sqrt(float(linear_alpha_bar()[t - 1])),
            _reverse_variance(t, 4),
        )
    study = create(
        STUDIES, parse(f"direction:points={points},defenses=({kind}:t={t},steps=4,{MODEL})")
    ).plugin
    rows = study.run(where).tables["images"].set_index(["image", "compared"])["pearson"]
    eps, z = where.setup.threat.eps, 2 * where.setup.images.pixels().double() - 1
    for image, plain in zip(where.setup.images.ids, z, strict=True):
        moved = (1 - slope) ** 2 * float(plain.var())
        across, fixed_noise = (
            moved / (moved + variance),
            (moved + variance) / (moved + variance + slope**2 * (2 * eps) ** 2 / 3),
        )
        # The chain's own numbers on the tape and the image are correlated by chance, about 1 /
        # sqrt(768).
        chance = 2 * math.sqrt(moved * variance / 768)
        near = chance / (moved + variance)
        assert rows[image, direction.ACROSS] == pytest.approx(across, abs=0.02)
        assert rows[image, direction.SAME] == pytest.approx(
            fixed_noise, abs=0.01 + 3 * near * (1 - fixed_noise)
        )
        assert rows[image, direction.CONTROL] == pytest.approx(0, abs=0.01)


def _reverse_variance(t: int, steps: int) -> float:
    """The variance that the reverse steps alone add: what is left of it without the noising's,
    which the slope carries through.
    """
    slope, _, variance = closed_form(t, steps, MEAN, STD)
    level = float(linear_alpha_bar()[t - 1])
    return variance - (1 - level) * slope**2 / level


def test_the_same_tape_gives_the_same_change_and_other_tapes_others():
    (one,) = deploy(setting(), [DIFFPURE[1:-1]])
    row, image = one.rows[1], one.images[1]
    fixed_noise, fixed_draws = one.victim("replay"), one.victim("replay-set", 3)
    twice = direction._on_one_fixed_noise(fixed_noise, row, torch.stack([image, image]))
    assert torch.allclose(twice[0], twice[1], atol=1e-6)
    across = direction._across(fixed_draws, row, image)
    assert torch.allclose(across[0], twice[0], atol=1e-6), (
        "the first of the tapes is the one of replay"
    )
    assert not torch.allclose(across[0], across[1], atol=1e-2)
    moves = direction._moves(fixed_noise, row, image, 4, 0.1)
    assert moves.shape == (4, 3, 16, 16) and 0.099 < moves.abs().max() <= 0.1
    assert not torch.equal(moves, direction._moves(fixed_noise, one.rows[2], image, 4, 0.1))


# Projection ---------------------------------------------------------------------------------------


def test_a_linear_chain_turns_no_perturbation():
    result = answer(f"projection:steps=2,defenses={DIFFPURE}+{REVPURE}", setting(linear_setup()))
    states = result.tables["projection"]
    slope, _, _ = closed_form(200, 4, MEAN, STD)
    root = math.sqrt(float(linear_alpha_bar()[199]))
    full, reverse = (
        states[states["defense"].str.startswith("diffpure")],
        states[states["defense"].str.startswith("revpure")],
    )
    assert list(full["stage"]) == ["input", "noising", *["reverse"] * 4] and list(full["step"]) == [
        -1,
        0,
        1,
        2,
        3,
        4,
    ]
    assert list(full["time"]) == [-1, 199, 149, 99, 49, -1] and list(reverse["step"]) == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert full["pi"].iloc[1] == pytest.approx(root, rel=1e-5) and full["kappa"].iloc[
        1
    ] == pytest.approx(root, rel=1e-5)
    assert full["pi"].iloc[-1] == pytest.approx(slope, rel=1e-4) and reverse["pi"].iloc[
        -1
    ] == pytest.approx(slope / root, rel=1e-4)
    assert np.allclose(states["pi"], states["kappa"], rtol=1e-5) and np.allclose(
        states["cosine"], 1, atol=1e-5
    )
    assert np.allclose(full["pi"].iloc[1:], root * reverse["pi"], rtol=1e-4)
    assert result.held is True


def test_pi_and_kappa_of_known_vectors():
    a = torch.zeros(2, 1, 1, 3).double()
    a[0, 0, 0] = torch.tensor([2.0, 0, 0])
    gaps = (
        torch.tensor([[[2.0, 0, 0], [1, 1, 0], [0, 3, 4]]])
        .double()
        .reshape(1, 3, 1, 1, 3)
        .repeat(2, 1, 1, 1, 1)
    )
    pi, kappa = projection.along(gaps, a)
    assert np.allclose(pi[0], [1, 0.5, 0]) and np.allclose(kappa[0], [1, math.sqrt(2) / 2, 2.5])
    assert np.isnan(pi[1]).all() and np.isnan(kappa[1]).all(), (
        "an image that the attack left has no direction"
    )


@pytest.mark.parametrize(
    ("pi", "kappa", "held"),
    [(0.8, 0.8, True), (0.801, 0.8, False), (0.8, 0.801, False), (np.nan, np.nan, True)],
)
def test_noising_must_be_exact(pi, kappa, held):
    paths = projection.Paths(
        ["input", "noising", "reverse"],
        np.array([-1, 9, -1]),
        np.array([1, 0.64, 1]),
        np.array([[1, 0.8, 0.3], [1, pi, 0.2]]),
        np.array([[1, 0.8, 0.3], [1, kappa, 0.2]]),
        pd.DataFrame(),
    )
    assert projection.noising_is_exact(paths) is held


def test_distances_are_those_to_the_clean_image():
    x = torch.full((2, 1, 8, 8), 0.5)
    moved = x.clone()
    moved[:, 0, 0, :3] += torch.tensor([0.1, -0.2, 0.2])
    table = projection.distances(x, moved, x, x + 0.01)
    assert np.allclose(table["attacked", "L2"], 0.3) and np.allclose(table["attacked", "Linf"], 0.2)
    assert np.allclose(table["purified clean"], [0, 0, 1]) and np.allclose(
        table["purified attacked", "L2"], 0.08
    )


def test_a_defense_without_noising_leaves_nothing_to_check():
    assert answer(f"projection:steps=1,defenses={REVPURE}").held is None
    blind = answer(f"projection:steps=1,gradient=blind,defenses={REVPURE}").tables["images"]
    full = answer(f"projection:steps=1,defenses={REVPURE}").tables["images"]
    assert not np.allclose(blind["pi"], full["pi"], equal_nan=True)


# Quality ------------------------------------------------------------------------------------------


def features_with(mean, covariance, n=60, seed=0):
    """Features whose mean and covariance are exactly these."""
    raw = np.random.default_rng(seed).normal(size=(n, len(mean)))
    raw -= raw.mean(0)
    white = (
        raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False).reshape(len(mean), -1))).T
    )
    return white @ np.linalg.cholesky(np.asarray(covariance, float)).T + mean


def test_the_frechet_distance_of_normal_laws_has_its_closed_form():
    first, second = (
        features_with([1, 2, 3], np.diag([1, 4, 9])),
        features_with([1, 0, 3], np.diag([4, 4, 1]), seed=1),
    )
    assert quality.frechet(first, second) == pytest.approx(4 + 1 + 0 + 4)
    assert quality.frechet(first, first) == pytest.approx(0, abs=1e-9)
    assert quality.frechet(features_with([0], [[1]]), features_with([3], [[4]])) == pytest.approx(
        9 + 1
    )


def test_the_frechet_distance_of_turned_covariances_takes_the_root_of_the_product():
    from scipy.linalg import sqrtm

    one, other = np.array([[2, 0.8], [0.8, 1]]), np.array([[1, -0.5], [-0.5, 3]])
    expected = np.trace(one) + np.trace(other) - 2 * np.trace(sqrtm(one @ other)).real
    assert quality.frechet(
        features_with([0, 0], one), features_with([0, 0], other, seed=2)
    ) == pytest.approx(expected)


def test_the_rank_correlation_is_that_of_scipy_and_its_bootstrap_keeps_a_stage_together():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 2))
    y = x + rng.normal(size=(9, 2))
    y[1, 1] = y[2, 0]
    found = quality.spearman(x, y)
    assert (
        found["rho"] == pytest.approx(spearmanr(x.ravel(), y.ravel()).statistic)
        and found["low"] < found["rho"] < found["high"]
    )
    assert quality.spearman(x, -x) == {
        "rho": pytest.approx(-1),
        "low": pytest.approx(-1),
        "high": pytest.approx(-1),
    }
    # Within each stage the order is turned, between stages it is kept: drawn stage by stage, no
    # resample can lose that.
    stage = np.arange(6.0)[:, None]
    assert (
        quality.spearman(np.hstack([stage, stage + 0.1]), np.hstack([stage + 0.1, stage]))["low"]
        > 0.5
    )


class Stand:
    """In place of a checkpoint: a Gaussian of some brightness."""

    def __init__(self, step, weights, mean):
        self.step, self.weights = step, weights
        self.spec = f"gaussian:channels=3,side=16,mean={mean},std=0.12"


def test_the_study_of_quality_ranks_what_is_nearer_to_the_data(monkeypatch):
    means = {10: 0.9, 20: 0.8, 30: 0.7, 40: 0.6, 50: 0.5}
    stands = [
        Stand(step, weights, mean) for step, mean in means.items() for weights in ("ema", "raw")
    ]
    monkeypatch.setattr(quality, "checkpoints", lambda model: stands)
    study = create(
        STUDIES, parse("quality:sampling_steps=2,steps=1,defense=(diffpure:t=100,steps=2)")
    ).plugin
    where = setting(batch_size=500)
    result = study.run(where)
    table, ranks = result.tables["quality"], result.tables["ranks"]
    assert list(table["step"]) == [10, 10, 20, 20, 30, 30, 40, 40, 50, 50] and set(
        table["weights"]
    ) == {"ema", "raw"}
    assert (np.diff(table["fd"][::2]) < 0).all() and np.allclose(
        table["fd"][::2], table["fd"][1::2]
    )
    by = ranks.set_index(["of", "and"])["rho"]
    assert by["step", "fd"] == pytest.approx(-1) and (ranks["stages"] == 5).all()
    assert (table["robust"] <= table["clean"]).all() and (
        table["robust_low"] <= table["robust"]
    ).all()
    assert set(study.sources(where)) == {one.spec for one in stands} | {"training images"}


def test_the_study_of_quality_refuses_what_it_cannot_rank(monkeypatch):
    monkeypatch.setattr(quality.zoo, "steps_of", lambda name: (1, 2, 3, 4))
    assert "needs at least 5" in message(lambda: quality.checkpoints("x"))
    monkeypatch.setattr(quality.zoo, "steps_of", lambda name: (1, 2, 3, 4, 5))
    assert [one.spec for one in quality.checkpoints("x")][:3] == [
        "zoo:x,step=1,weights=ema",
        "zoo:x,step=1,weights=raw",
        "zoo:x,step=2,weights=ema",
    ]
    assert "leave `model` out" in message(
        lambda: quality.with_model("diffpure:model=gaussian", "zoo:x")
    )
    assert "no parameter 'model'" in message(lambda: quality.with_model("bit-depth", "zoo:x"))
    text = quality.with_model("diffpure:steps=5", "zoo:x,step=1,weights=raw")
    assert parse(text).options == {"steps": "5", "model": "(zoo:x,step=1,weights=raw)"}
    model = SimpleNamespace(trained_steps=400, steps=1000)
    assert "draws no images" in message(
        lambda: quality.draw(setting(), model, quality.QualityParams())
    )
    (one,) = deploy(setting(linear_setup()), [DIFFPURE[1:-1]])
    assert "view 'features'" in message(lambda: features(one.setting, one.images))


# Gradients ----------------------------------------------------------------------------------------


def test_gradients_of_a_linear_model_behind_a_linear_chain_all_agree():
    table = answer(
        f"gradients:draws=1+2,defenses={DIFFPURE}+{REVPURE}", setting(linear_setup())
    ).tables["gradients"]
    assert set(table["gradient"]) == {"full", "bpda", "surrogate", "blind"} and len(table) == 2 * 5
    assert (
        np.allclose(table[["cosine", "cosine_low", "signs"]], 1, atol=1e-5)
        and (table["zero"] == 0).all()
    )


def test_averaged_gradients_agree_as_their_signal_to_noise_says():
    """g = mu + noise in d dimensions: the cosine of two averages of k is near |mu|^2 / (|mu|^2 + d
    sigma^2 / k).
    """
    generator, d, sigma = torch.Generator().manual_seed(0), 4096, 0.05
    mu = torch.randn(d, generator=generator)
    mu = mu / mu.norm()
    slopes = mu + sigma * torch.randn(32, 8, d, generator=generator)
    for k in (1, 2, 4, 16):
        pair = gradients._pair(
            "eot", "full", k, *(gradients.averages(part, k) for part in (slopes[:16], slopes[16:]))
        )
        assert pair.cosine.mean().item() == pytest.approx(1 / (1 + d * sigma**2 / k), abs=0.01)
    assert gradients.averages(slopes[:5], 2).shape == (2, 8, d)
    assert torch.allclose(gradients.averages(slopes[:5], 2)[1], (slopes[2] + slopes[3]) / 2)


def test_signs_and_zero_gradients_are_counted():
    first = torch.tensor([[[1.0, -1, 2, 0]], [[0, 0, 0, 0]]])
    second = torch.tensor([[[3.0, -2, -1, 1]], [[1, 1, 1, 0]]])
    pair = gradients._pair("tape", "bpda", 1, first, second)
    assert pair.signs.item() == pytest.approx((2 / 4 + 1 / 4) / 2) and pair.zero.item() == 0.5
    assert pair.cosine.item() == pytest.approx(3 / math.sqrt(6 * 15)), (
        "a gradient of zero has no cosine"
    )


def test_one_draw_is_the_same_for_every_backward_pass_and_independent_of_the_next():
    (one,) = deploy(setting(), [DIFFPURE[1:-1]])
    x = gradients.random_signs(one, 0.1)
    assert (
        float(x.min()) >= 0
        and float(x.max()) <= 1
        and torch.allclose((x - one.images).abs().amax((1, 2, 3)), torch.tensor(0.05))
    )
    first = gradients.slope(one, x, "full", 0)
    assert torch.equal(first, gradients.slope(one, x, "full", 0)) and not torch.allclose(
        first, gradients.slope(one, x, "full", 1)
    )
    bpda = gradients.slope(one, x, "bpda", 0)
    # A linear chain: the exact gradient is the one at the purified image, times the chain's slope.
    assert torch.allclose(first, closed_form(200, 4, MEAN, STD)[0] * bpda, rtol=1e-3, atol=1e-7)


def test_a_deterministic_defense_needs_one_draw():
    table = answer(f"gradients:draws=1+4,defenses=(revpure:steps=2,sampler=ddim,{MODEL})").tables[
        "gradients"
    ]
    assert list(table[table["compared"] == gradients.EOT]["k"]) == [1]
    assert gradients.enough(table, table["defense"][0]) == 1


def test_the_fewest_draws_that_agree_are_named():
    rows = [
        {"defense": "d", "compared": gradients.EOT, "k": k, "cosine": c}
        for k, c in ((1, 0.5), (4, 0.93), (8, 0.95))
    ]
    assert gradients.enough(pd.DataFrame(rows), "d") == 4
    assert gradients.enough(pd.DataFrame(rows[:1]), "d") is None


# Overhead -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "rounds"),
    [
        ("diffpure:t=100,steps=6", 1),
        ("revpure:t=100,steps=6", 1),
        ("diffpure:t=100,steps=6,rounds=2", 2),
    ],
)
def test_passes_through_the_network_are_counted_exactly(spec, rounds):
    result = answer(f"overhead:repeats=1,defenses=({spec},{MODEL})")
    found = result.tables["gradients"].set_index("gradient")
    expected = {
        "full": (6, 6),
        overhead.CHECKPOINTED: (12, 6),
        "bpda": (6, 0),
        "surrogate": (3, 3),
        "blind": (0, 0),
    }
    for name, (forwards, backwards) in expected.items():
        row = found.loc[name]
        assert (row["forwards"], row["backwards"]) == (rounds * forwards, rounds * backwards), name
        assert row["forward_equivalents"] == rounds * (forwards + backwards)
    (costs,) = result.tables["inference"].to_dict("records")
    assert costs["evaluations"] == 6 * rounds and costs["share_of_generation"] == pytest.approx(
        0.1 * rounds
    )
    assert costs["latency_ratio"] == pytest.approx(
        1 + costs["purification_seconds"] / costs["classifier_seconds"]
    )


def test_counting_leaves_no_trace():
    (one,) = deploy(setting(), [DIFFPURE[1:-1]])
    before = gradients.slope(one, one.images, "full", 0)
    with overhead.counted(one.classifier) as calls:
        assert torch.equal(gradients.slope(one, one.images, "full", 0), before)
    assert (calls.forwards, calls.backwards) == (48, 48)
    gradients.slope(one, one.images, "full", 0)
    assert calls.forwards == 48


def test_a_defense_without_a_diffusion_model_has_no_evaluations():
    with pytest.raises(BadInput, match="has no diffusion model"):
        diffusion_model(deploy(setting(), ["undefended"])[0])


# The command --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    ["direction:points=2", "projection:steps=1", "gradients:draws=1+2", "overhead:repeats=1"],
)
def test_the_command_runs_them(capsys, tmp_path, spec):
    pure = "defenses=(diffpure:t=20,steps=2,model=gaussian)+(revpure:t=20,steps=2,model=gaussian)"
    arguments = ["study", f"{spec},{pure}", "--n", "3", "--out", str(tmp_path)]
    assert execute(arguments) == 0
    out = capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    names = {path.suffix for path in folder.iterdir()}
    assert names == {".csv", ".png", ".json"} and "revpure" in out and "nan" not in out
    assert '"sources"' in (folder / "study.json").read_text()
    assert execute(arguments) == 0 and "already stored" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["direction", "projection", "quality", "gradients", "overhead"])
def test_the_committed_results_are_whole_and_quoted(name):
    (path,) = (ROOT / "leaderboards" / "studies" / name).glob("*/study.json")
    record = StudyRecord.model_validate_json(path.read_bytes())
    stored = find(path.parents[1], record.id)
    assert stored is not None and record.held is not False and record.scale
    plugin = create(STUDIES, parse(record.study)).plugin
    assert record.identity["study"]["version"] == plugin.version
    assert record.identity["plugins"] == plugin.plugins(), (
        "a newer version of a defense: run the study again"
    )
    assert stored.render() in (ROOT / "docs" / "studies.md").read_text().replace("\n    ", "\n")
