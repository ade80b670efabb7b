"""What the studies of defenses share."""

import math

import numpy as np
import pytest
import torch

from bench.contract.setups import built_in_setup
from bench.errors import BadInput
from bench.plugins.create import STUDIES, create
from bench.results.intervals import student_mean
from bench.spec import parse
from bench.studies.deployed import (
    GradientSearch,
    GradientSearchParams,
    columns,
    deploy,
    diffusion_model,
)
from bench.threat import ThreatModel
from tests.studies.helpers import DIFFPURE, MODEL, answer, purifier_setting
from tests.toys import message


def test_a_mean_has_students_interval():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean = student_mean(np.array([*values, np.nan]))
    half = 1.96 * values.std() / 20
    assert mean.value == pytest.approx(values.mean())
    assert mean.low == pytest.approx(values.mean() - half, abs=0.03) and mean.high == pytest.approx(
        values.mean() + half, abs=0.03
    )
    assert mean == student_mean(values)
    nothing = student_mean(np.array([np.nan]))
    assert math.isnan(nothing.value)
    one = student_mean(np.array([0.5]))
    assert columns("x", one)["x"] == 0.5 and math.isnan(columns("x", one)["x_low"])


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
def test_the_view_times_has_the_index_of_each_state(spec, times):
    (one,) = deploy(purifier_setting(), [spec], ["states", "times"])
    noise = one.victim().random(one.rows)
    indices = one.classifier.forward_pass("full", "times")(one.images, noise)
    assert indices.tolist() == [times] * 12
    states = one.classifier.forward_pass("full", "states")(one.images, noise)
    assert states.shape[:2] == indices.shape
    if times[0] == -1:
        assert torch.allclose(states[:, 0], 2 * one.images - 1)


def test_the_gradient_search_stays_in_the_ball_and_stops_at_a_success():
    (one,) = deploy(purifier_setting(), [DIFFPURE[1:-1]])
    victim = one.victim("replay")
    result = GradientSearch(GradientSearchParams(steps=5))(
        victim, one.images, one.labels, one.setup.threat
    )
    assert (
        bool(one.setup.threat.contains(result.points, one.images).all()) and result.reprojected == 0
    )
    assert result.predictions.shape == (12, 1) and bool((result.points != one.images).any())
    broken = result.predictions[:, 0] != one.labels
    assert bool((victim.forwards[broken] <= 7).all())


def test_defenses_that_do_not_fit_are_refused():
    where = purifier_setting()
    assert "does not offer the view 'purified'" in message(
        lambda: answer("direction:defenses=undefended", where)
    )
    assert "no other draws" in message(
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
        assert "Linf ball" in message(lambda name=name: answer(name, purifier_setting(setup)))
    for call in (
        "direction:points=1",
        "gradients:draws=0",
        "projection:steps=0",
        "quality:samples=1999",
        "direction:defenses=",
    ):
        message(lambda call=call: create(STUDIES, parse(call)))


def test_a_defense_without_a_diffusion_model_has_no_evaluations():
    with pytest.raises(BadInput, match="has no diffusion model"):
        diffusion_model(deploy(purifier_setting(), ["undefended"])[0])
