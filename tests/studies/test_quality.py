"""The study `quality`."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from bench.diffusion.layout import MAIN, RAW, weights_name
from bench.plugins.create import STUDIES, create
from bench.spec import parse
from bench.studies import quality
from bench.studies.deployed import deploy, features
from tests.studies.helpers import DIFFPURE, linear_setup, purifier_setting
from tests.toys import message


def features_with(mean, covariance, n=60, seed=0):
    """Features whose mean and covariance are exactly these."""
    raw = np.random.default_rng(seed).normal(size=(n, len(mean)))
    raw -= raw.mean(0)
    white = (
        raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False).reshape(len(mean), -1))).T
    )
    return white @ np.linalg.cholesky(np.asarray(covariance, float)).T + mean


def test_the_frechet_distance_of_normal_distributions_has_its_closed_form():
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
    correlation = quality.spearman(x, y)
    assert (
        correlation["rho"] == pytest.approx(spearmanr(x.ravel(), y.ravel()).statistic)
        and correlation["low"] < correlation["rho"] < correlation["high"]
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


class Gaussian:
    """In place of a checkpoint: a Gaussian of some brightness."""

    def __init__(self, step, weights, mean):
        self.step, self.weights = step, weights
        self.spec = f"gaussian:channels=3,side=16,mean={mean},std=0.12"


def test_the_study_of_quality_ranks_what_is_nearer_to_the_data(monkeypatch):
    means = {10: 0.9, 20: 0.8, 30: 0.7, 40: 0.6, 50: 0.5}
    checkpoints = [
        Gaussian(step, weights, mean) for step, mean in means.items() for weights in ("ema", "raw")
    ]
    monkeypatch.setattr(quality, "checkpoints", lambda params: checkpoints)
    study = create(
        STUDIES, parse("quality:sampling_steps=2,steps=1,defense=(diffpure:t=100,steps=2)")
    ).plugin
    where = purifier_setting(batch_size=500)
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
    assert set(study.sources(where)) == {one.spec for one in checkpoints} | {"training images"}


def series(folder, steps, kinds=("ema", "raw")):
    """A folder that says it keeps weights of these steps."""
    (folder / "steps").mkdir(parents=True)
    for name in ("config.json", "scheduler_config.json"):
        (folder / name).write_text("{}")
    (folder / "bench.json").write_text(json.dumps({"steps": steps}))
    last = {"ema": MAIN, "raw": RAW}
    for kind in kinds:
        for step in steps[:-1]:
            (folder / weights_name(kind, step)).touch()
        (folder / last[kind]).touch()
    return folder


def chosen(**parameters):
    return quality.checkpoints(quality.QualityParams(**parameters))


def test_any_model_that_keeps_its_weights_makes_a_series(tmp_path):
    assert [one.spec for one in chosen()][:3] == [
        "zoo:mnist5k-ddpm,step=75,weights=ema",
        "zoo:mnist5k-ddpm,step=75,weights=raw",
        "zoo:mnist5k-ddpm,step=150,weights=ema",
    ]
    assert chosen(model="zoo:mnist5k-ddpm") == chosen() and len(chosen()) == 18
    folder = series(tmp_path / "mine", [1, 2, 3, 4, 5])
    assert chosen(model=f"(folder:{folder})")[3] == quality.Checkpoint(
        f"folder:{folder},step=2,weights=raw", 2, "raw"
    )
    (folder / weights_name("raw", 3)).unlink()
    assert [one.weights for one in chosen(model=f"folder:{folder}")] == ["ema"] * 5
    listed = tuple(f"gaussian:std=0.{k}" for k in range(4, 9))
    assert [(one.spec, one.step, one.weights) for one in chosen(checkpoints=listed)] == [
        (spec, place + 1, "given") for place, spec in enumerate(listed)
    ]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"model": "folder:{few}"}, "4 stages"),
        ({"model": "gaussian:std=0.1"}, "0 stages"),
        ({"model": "hf:google/ddpm-cifar10-32"}, "checkpoints=(SPEC)+(SPEC)"),
        ({"model": "no-such-model"}, "unknown zoo diffusion model"),
        ({"model": "zoo:mnist5k-ddpm,step=75"}, "leave out step"),
        ({"model": "folder:{nowhere}"}, "no such folder"),
        ({"checkpoints": ["gaussian", "gaussian:std=0.1"]}, "2 stages"),
        ({"checkpoints": ["gaussian:std=0.1"] * 5}, "1 stages"),
        ({"checkpoints": ["gaussian"] * 5, "model": "zoo:mnist5k-ddpm"}, "give one of them"),
    ],
)
def test_a_model_without_a_series_is_told_in_one_line(tmp_path, parameters, words):
    series(tmp_path / "few", [1, 2, 3, 4])
    if "model" in parameters:
        parameters = {
            **parameters,
            "model": parameters["model"].format(few=tmp_path / "few", nowhere=tmp_path / "no"),
        }
    spec = "quality:" + ",".join(
        f"{key}=({text})" if key == "model" else f"{key}=" + "+".join(f"({one})" for one in text)
        for key, text in parameters.items()
    )
    text = message(lambda: quality.checkpoints(create(STUDIES, parse(spec)).plugin.params))
    assert words in text and "\n" not in text


def test_a_list_of_models_is_ranked_by_its_order():
    means = (0.9, 0.8, 0.7, 0.6, 0.5)
    listed = "+".join(f"(gaussian:channels=3,side=16,mean={mean},std=0.12)" for mean in means)
    study = create(
        STUDIES,
        parse(
            f"quality:checkpoints={listed},sampling_steps=2,steps=1,defense=(diffpure:t=100,steps=2)"
        ),
    ).plugin
    result = study.run(purifier_setting(batch_size=500))
    table = result.tables["quality"]
    assert list(table["step"]) == [1, 2, 3, 4, 5] and set(table["weights"]) == {"given"}
    by = result.tables["ranks"].set_index(["of", "and"])["rho"]
    assert by["step", "fd"] == pytest.approx(-1) and "the last one: given FD" in result.sentence


def test_the_study_of_quality_refuses_what_it_cannot_rank():
    assert "leave `model` out" in message(
        lambda: quality.with_model("diffpure:model=gaussian", "zoo:x")
    )
    assert "no parameter 'model'" in message(lambda: quality.with_model("bit-depth", "zoo:x"))
    text = quality.with_model("diffpure:steps=5", "zoo:x,step=1,weights=raw")
    assert parse(text).options == {"steps": "5", "model": "(zoo:x,step=1,weights=raw)"}
    model = SimpleNamespace(trained_steps=400, steps=1000, shape=(3, 16, 16))
    assert "draws no images" in message(
        lambda: quality.draw(purifier_setting(), model, quality.QualityParams())
    )
    model.shape = (3, 32, 32)
    assert "of such images" in message(
        lambda: quality.draw(purifier_setting(), model, quality.QualityParams())
    )
    (one,) = deploy(purifier_setting(linear_setup()), [DIFFPURE[1:-1]])
    assert "view 'features'" in message(lambda: features(one.setting, one.images))
