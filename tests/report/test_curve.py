"""Robust accuracy over eps, and per image the smallest eps that broke it."""

import json

import numpy as np
import pytest

import bench
from bench.report import curve as module
from bench.results.extra import ExtraPoints
from tests.helpers import call, run_toys
from tests.toy_plugins import Toy
from tests.toys import exact_distance, linear_problem, message

EPS = (0.01, 0.005, 0.02)
CLEAR = 0.05


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    return folder, [
        run_toys(folder, defenses=("undefended",), attacks=("pgd:steps=20",), eps=eps)[-1]
        for eps in EPS
    ]


def test_the_smallest_eps_is_the_first_beyond_the_exact_distance(records):
    """The toy's classifier is linear: how far each image is from being misclassified is known."""
    model = linear_problem(3, 1, active_box=False)[0]
    images = Toy(Toy.Params(n=150)).test()
    distance = exact_distance(model, images.pixels(), images.labels, "linf")
    smallest = bench.smallest_eps(records[1])
    assert (smallest.index == images.ids).all()
    wrong = (model(images.pixels()).argmax(1) != images.labels).numpy()
    for eps in sorted(EPS):
        clear = abs(distance / eps - 1) > CLEAR
        broken = wrong | (distance <= eps)
        differ = ((smallest <= eps).to_numpy() != broken) & clear
        assert differ.mean() <= 0.03
    assert (smallest.to_numpy()[wrong] == 0).all()
    assert np.isinf(smallest).any() and (smallest == 0.005).any()


def test_the_curve_has_one_row_an_eps_in_rising_order(records):
    table = bench.eps_curve(records[1])
    assert table.index.tolist() == sorted(EPS)
    by_eps = {module.eps_of(record): record for record in records[1]}
    for eps, row in table.iterrows():
        assert row["robust"] == by_eps[eps].metrics.adversarial.mean.value
        assert row["low"] <= row["robust"] <= row["high"]
        assert row["nested"] <= row["robust"] + 1e-12
    assert (table["robust"].diff().dropna() <= 0).all()


def test_a_smaller_ball_that_broke_more_counts_in_the_larger_one(records):
    """The weaker of two searches at the larger eps: nested does not rise with eps."""
    small, large = sorted(records[1], key=module.eps_of)[:2]
    unbroken = large.outcomes.model_copy(update={"adversarial": large.outcomes.clean})
    weak = large.model_copy(update={"outcomes": unbroken, "extra": []})
    made = module.curve([small, weak])
    first, second = made.nested()
    assert second.value == first.value < 1


def test_extra_points_break_at_their_eps_and_at_larger_ones(records):
    small, large = (
        r.model_copy(update={"extra": []}) for r in sorted(records[1], key=module.eps_of)[:2]
    )
    labels = small.outcomes.true_labels()
    left = np.flatnonzero(small.outcomes.correct("adversarial")[:, 0])[:3]
    wrong = (labels[left] + 1) % small.outcomes.num_classes
    points = ExtraPoints.of(
        "checks", small.outcomes.num_classes, small.outcomes.image_ids()[left], wrong[:, None]
    )
    plain, made = (
        module.curve([one, large]) for one in (small, small.model_copy(update={"extra": [points]}))
    )
    lost = plain.nested()[0].value - made.nested()[0].value
    assert lost == pytest.approx(3 / len(labels))
    assert (made.smallest[left] == module.eps_of(small)).all()
    assert (plain.smallest[left] > module.eps_of(small)).all()


def test_show_prints_the_curve_and_json_has_each_image(records, capsys):
    folder, made = records
    paths = [str(folder / f"{record.stem}.json") for record in made]
    code, out, _ = call(capsys, "show", *paths)
    assert code == 0 and "| eps" in out and "nested" in out
    assert out.index("0.005") < out.index("0.01") < out.index("0.02")
    code, out, _ = call(capsys, "show", "--json", *paths)
    shown = json.loads(out)
    smallest = shown["curve"]["smallest_eps"]
    assert len(smallest) == 150 and None in smallest.values()
    assert [point["eps"] for point in shown["curve"]["points"]] == sorted(EPS)


def test_one_record_has_a_curve_where_its_attack_measured_distances(tmp_path):
    record = run_toys(
        tmp_path,
        defenses=("undefended",),
        attacks=("fmn:steps=30",),
        dataset="toy:n=40",
        eps=0.02,
    )[-1]
    model, images, labels = linear_problem(3, 40, active_box=False)
    exact = exact_distance(model, images, labels, "linf")
    # A success takes a margin of 1e-5 of the logits, which adds to the nearest distances.
    assert bench.smallest_eps([record]).to_numpy() == pytest.approx(exact, rel=0.02, abs=1e-4)
    table = bench.eps_curve([record], eps=(0.03, 0.01, 0.02))
    assert list(table.index) == [0.01, 0.02, 0.03]
    for eps, robust in table["robust"].items():
        assert robust == pytest.approx((exact > eps).mean(), abs=1 / 40)
    assert table["robust"][0.02] == record.metrics.adversarial.mean.value
    assert list(bench.eps_curve([record]).index) == [0.005, 0.01, 0.02, 0.04, 0.08]
    assert record.distances.median == pytest.approx(np.sort(exact)[20], rel=0.02)


def test_records_that_differ_in_more_are_no_curve(records, tmp_path):
    other = run_toys(tmp_path, defenses=("undefended",), attacks=("pgd:steps=3",), eps=0.02)[-1]
    for wrong in (records[1][:1], [records[1][0], other], [records[1][0]] * 2):
        assert "differ in eps alone" in message(lambda wrong=wrong: bench.eps_curve(wrong))
