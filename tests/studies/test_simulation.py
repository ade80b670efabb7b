"""The simulation against the closed forms, and both against mutations."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from bench.studies import simulation, theory
from bench.studies.theorem import TheoremParams

INF = math.inf


SMALL = TheoremParams(trials=4000, radius=1.5, sigma=0.5, dimensions=(2, 8), draws=(1, 5))


def rows(params: TheoremParams = SMALL, seed: int = 0) -> pd.DataFrame:
    balls = [
        simulation.ball_cases(n, params.radius, params.sigma, params.draws)
        for n in params.dimensions
    ]
    ball_rows = [
        row for cases in balls for row in simulation.simulate(cases, params.trials, 5, seed)
    ]
    others = [*simulation.budget_cases(16, 1), *simulation.half_space_cases(16, 1)]
    return pd.DataFrame(ball_rows + simulation.simulate(others, params.trials, 1, seed))


def models_that_do_not_hold(points: pd.DataFrame) -> set[str]:
    return set(points[~points["held"]]["randomness"])


def test_simulation_and_formulas_agree():
    points = rows()
    assert models_that_do_not_hold(points) == set()
    assert points["z"].abs().max() < 4 and points["z"].notna().sum() > 15
    assert points[points["randomness"] == "replay"]["simulated"].eq(1).all()
    assert not np.array_equal(points["simulated"], rows(seed=1)["simulated"])


@pytest.mark.parametrize(
    ("name", "wrong", "models"),
    [
        (
            "eot",
            lambda n, R, s, k=INF: theory.centred_mass(n, R, s, 1 / k if k < INF else 1),
            {"fresh", "eot"},
        ),
        (
            "eot",
            lambda n, R, s, k=INF: theory.centred_mass(n, R, 1, 1 + 1 / k),
            {"fresh", "eot", "ideal eot"},
        ),
        (
            "replay_set",
            lambda n, R, s, k: theory.centred_mass(n, R, s, 1 + 1 / k),
            {"replay", "replay-set"},
        ),
        (
            "worst_of",
            lambda n, R, s, N, k=INF: 1 - (1 - theory.centred_mass(n, R, s, 1 + 1 / k)) ** N,
            {"worst of 10"},
        ),
        ("budget_eot", lambda n, R, s, d, e: theory.clean(n, R + e, s, d), {"ideal eot, budget"}),
        ("budget_replay", lambda n, R, s, d, e: theory.clean(n, R, s, d - e), {"replay, budget"}),
        (
            "half_space",
            lambda s, d, e: theory.norm.cdf(e / s),
            {"half-space, fresh", "half-space, replay"},
        ),
    ],
)
def test_a_wrong_formula_does_not_hold(monkeypatch, name, wrong, models):
    monkeypatch.setattr(theory, name, wrong)
    assert models_that_do_not_hold(rows()) == models


def test_one_noise_for_attack_and_judge_does_not_hold(monkeypatch):
    honest = simulation.draw

    def leaking(*arguments):
        draws = honest(*arguments)
        return simulation.Draws(
            draws.seen, draws.fixed_noise, torch.cat([draws.seen[:, :1], draws.fresh[:, 1:]], 1)
        )

    monkeypatch.setattr(simulation, "draw", leaking)
    assert {"fresh", "eot", "worst of 10"} <= models_that_do_not_hold(rows())


def test_a_replay_that_is_judged_on_fresh_noise_does_not_hold(monkeypatch):
    honest = simulation.draw

    def fresh(*arguments):
        draws = honest(*arguments)
        return simulation.Draws(
            draws.seen,
            torch.cat([draws.fresh[:, :1], draws.fixed_noise[:, 1:]], 1) * 2,
            draws.fresh,
        )

    monkeypatch.setattr(simulation, "draw", fresh)
    assert {"replay-set", "replay, budget"} <= models_that_do_not_hold(rows())


def test_blocks_change_nothing(monkeypatch):
    cases = simulation.ball_cases(3, 3, 1, (1, 2))
    whole = simulation.simulate(cases, 300, 2, 0)
    monkeypatch.setattr(simulation, "BLOCK_NUMBERS", 7 * 6)
    assert pd.DataFrame(whole).equals(pd.DataFrame(simulation.simulate(cases, 300, 2, 0)))


def test_a_budget_larger_than_the_way_is_not_overspent():
    draws = simulation.draw(range(200), 1, 4, 0)
    assert bool(simulation.moved_under_fixed_noise(1e-3, 1, 2, 50, draws).all())
    nearer = simulation.moved(1, 1, 2, 2, draws)
    assert torch.equal(simulation.moved(1, 1, 2, 50, draws), nearer) and 0 < int(nearer.sum()) < 200
