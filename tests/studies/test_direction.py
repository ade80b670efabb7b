"""The study `direction`."""

import math

import numpy as np
import pytest
import torch

from bench.diffusion.model import linear_alpha_bar
from bench.plugins.create import STUDIES, create
from bench.spec import parse
from bench.studies import direction
from bench.studies.deployed import deploy
from tests.defenses.purification.helpers import closed_form
from tests.studies.helpers import DIFFPURE, MEAN, MODEL, STD, purifier_setting


def test_agreement_is_the_mean_off_diagonal_of_corrcoef():
    vectors = np.random.default_rng(0).normal(size=(7, 50)) + np.linspace(0, 2, 50) + 3
    off = ~np.eye(7, dtype=bool)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    agreement = direction.agreement(vectors)
    assert agreement["pearson"] == pytest.approx(np.corrcoef(vectors)[off].mean(), abs=1e-12)
    assert agreement["cosine"] == pytest.approx((units @ units.T)[off].mean(), abs=1e-12)
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
    where, points = purifier_setting(), 40
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
        # The chain's own numbers under that noise and the image are correlated by chance, about 1 /
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


def test_the_same_noise_gives_the_same_change_and_other_draws_others():
    (one,) = deploy(purifier_setting(), [DIFFPURE[1:-1]])
    row, image = one.rows[1], one.images[1]
    fixed_noise, fixed_draws = one.victim("replay"), one.victim("replay-set", 3)
    twice = direction.under_fixed_noise(fixed_noise, row, torch.stack([image, image]))
    assert torch.allclose(twice[0], twice[1], atol=1e-6)
    across = direction.across_draws(fixed_draws, row, image)
    assert torch.allclose(across[0], twice[0], atol=1e-6), (
        "the first noise of the set is the one of replay"
    )
    assert not torch.allclose(across[0], across[1], atol=1e-2)
    moves = direction.perturbations(fixed_noise, row, image, 4, 0.1)
    assert moves.shape == (4, 3, 16, 16) and 0.099 < moves.abs().max() <= 0.1
    assert not torch.equal(moves, direction.perturbations(fixed_noise, one.rows[2], image, 4, 0.1))
