"""The study `projection`."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from bench.diffusion.model import linear_alpha_bar
from bench.studies import projection
from tests.defenses.purification.helpers import closed_form
from tests.studies.helpers import (
    DIFFPURE,
    MEAN,
    REVPURE,
    STD,
    answer,
    linear_setup,
    purifier_setting,
)


def test_a_linear_chain_turns_no_perturbation():
    result = answer(
        f"projection:steps=2,defenses={DIFFPURE}+{REVPURE}", purifier_setting(linear_setup())
    )
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
