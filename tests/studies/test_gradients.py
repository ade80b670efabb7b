"""The study `gradients`."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from bench.studies import gradients
from bench.studies.deployed import deploy
from tests.defenses.purification.helpers import closed_form
from tests.studies.helpers import (
    DIFFPURE,
    MEAN,
    MODEL,
    REVPURE,
    STD,
    answer,
    linear_setup,
    purifier_setting,
)


def test_gradients_of_a_linear_model_behind_a_linear_chain_all_agree():
    table = answer(
        f"gradients:draws=1+2,defenses={DIFFPURE}+{REVPURE}", purifier_setting(linear_setup())
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
        pair = gradients.pair_of(
            "eot", "full", k, *(gradients.averages(part, k) for part in (slopes[:16], slopes[16:]))
        )
        assert pair.cosine.mean().item() == pytest.approx(1 / (1 + d * sigma**2 / k), abs=0.01)
    assert gradients.averages(slopes[:5], 2).shape == (2, 8, d)
    assert torch.allclose(gradients.averages(slopes[:5], 2)[1], (slopes[2] + slopes[3]) / 2)


def test_signs_and_zero_gradients_are_counted():
    first = torch.tensor([[[1.0, -1, 2, 0]], [[0, 0, 0, 0]]])
    second = torch.tensor([[[3.0, -2, -1, 1]], [[1, 1, 1, 0]]])
    pair = gradients.pair_of(gradients.FIXED, "bpda", 1, first, second)
    assert pair.signs.item() == pytest.approx((2 / 4 + 1 / 4) / 2) and pair.zero.item() == 0.5
    assert pair.cosine.item() == pytest.approx(3 / math.sqrt(6 * 15)), (
        "a gradient of zero has no cosine"
    )


def test_one_draw_is_the_same_for_every_backward_pass_and_independent_of_the_next():
    (one,) = deploy(purifier_setting(), [DIFFPURE[1:-1]])
    x = gradients.random_signs(one, 0.1)
    assert (
        float(x.min()) >= 0
        and float(x.max()) <= 1
        and torch.allclose((x - one.images).abs().amax((1, 2, 3)), torch.tensor(0.05))
    )
    first = gradients.input_gradient(one, x, "full", 0)
    assert torch.equal(first, gradients.input_gradient(one, x, "full", 0)) and not torch.allclose(
        first, gradients.input_gradient(one, x, "full", 1)
    )
    bpda = gradients.input_gradient(one, x, "bpda", 0)
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
