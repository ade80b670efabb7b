"""The closed forms: known values, integrals and limits."""

import math

import pytest
from scipy.integrate import quad
from scipy.stats import chi2, ncx2

from bench.studies import theory

INF = math.inf


@pytest.mark.parametrize(
    ("value", "known"),
    [
        (theory.eot(8, 3, 1, 1), 0.1906),
        (theory.eot(8, 3, 1, 5), 0.5162),
        (theory.ideal(8, 3, 1), 0.6577),
        (theory.replay_set(8, 3, 1, 1), 1),
        (theory.replay_set(8, 3, 1, 2), 0.9788),
        (theory.replay_set(8, 3, 1, 5), 0.8121),
        (theory.replay_set(8, 3, 1, 20), 0.6961),
        (theory.descent(8, 3, 1, 1, 0.1), 0.5762),
        (theory.budget_replay(16, 5, 1, 6, 4), 0.9765),
        (theory.budget_eot(16, 5, 1, 6, 4), 0.7823),
        (theory.clean(16, 5, 1, 6), 0.0088),
        (theory.half_space(1, 2, 1), 0.1587),
        (theory.phase(3072, 1.1, 20), 0.9675),
        (theory.phase(3072, 1.1), 0.9999),
        (theory.phase(3072, 1.9, 1), 0.0236),
        (theory.phase(3072, 2.1, 1), 0.9736),
        # An integral, taken below by other means too; a table printed elsewhere has .7546 from a
        # simulation.
        (theory.worst_of(8, 3, 1, 10, 1), 0.7539),
        (theory.worst_of(8, 3, 1, 10), 1 - (1 - 0.657704) ** 10),
    ],
)
def test_known_values(value, known):
    assert value == pytest.approx(known, abs=5e-5)


@pytest.mark.parametrize(
    ("n", "row"),
    [
        (1, (0.966, 0.994, 0.997, 0.997)),
        (5, (0.520, 0.814, 0.873, 0.891)),
        (16, (2.27e-3, 0.0376, 0.0700, 0.0866)),
        (32, (2.5e-9, 2.2e-6, 1.1e-5, 2.0e-5)),
        (64, (8.0e-26, 2.4e-19, 1.0e-17, 3.9e-17)),
    ],
)
def test_a_ball_of_three_standard_deviations(n, row):
    assert [theory.eot(n, 3, 1, k) for k in (1, 5, 20, INF)] == pytest.approx(row, rel=0.03)
    assert [theory.eot(n, 1.5, 0.5, k) for k in (1, 5, 20, INF)] == pytest.approx(row, rel=0.03)


def test_lengths_count_in_standard_deviations():
    pairs = [
        (theory.replay_set(5, 6, 2, 3), theory.replay_set(5, 3, 1, 3)),
        (theory.worst_of(5, 6, 2, 4, 2), theory.worst_of(5, 3, 1, 4, 2)),
        (theory.descent(5, 6, 2, 2, 0.2), theory.descent(5, 3, 1, 2, 0.2)),
        (theory.clean(5, 6, 2, 4), theory.clean(5, 3, 1, 2)),
        (theory.budget_eot(5, 6, 2, 8, 2), theory.budget_eot(5, 3, 1, 4, 1)),
        (theory.budget_replay(5, 6, 2, 8, 2), theory.budget_replay(5, 3, 1, 4, 1)),
        (theory.half_space(2, 4, 2), theory.half_space(1, 2, 1)),
    ]
    for scaled, plain in pairs:
        assert scaled == pytest.approx(plain, rel=1e-9) and 0.01 < plain < 0.999


def test_limits_meet():
    assert theory.descent(8, 3, 1, 5, 0.5) == pytest.approx(theory.eot(8, 3, 1, 5))
    assert theory.descent(8, 3, 1, 1, 1e-6) == pytest.approx(theory.ideal(8, 3, 1), abs=1e-5)
    assert theory.eot(8, 3, 1, 10**6) == pytest.approx(theory.ideal(8, 3, 1), abs=1e-5)
    assert theory.replay_set(8, 3, 1, 10**6) == pytest.approx(theory.ideal(8, 3, 1), abs=1e-5)
    assert theory.worst_of(8, 3, 1, 1, 5) == pytest.approx(theory.eot(8, 3, 1, 5), abs=1e-6)
    assert theory.budget_eot(8, 3, 1, 4, 9) == theory.ideal(8, 3, 1)
    assert theory.budget_replay(8, 3, 1, 4, 0) == theory.clean(8, 3, 1, 4)
    for k in (1, 2, 5):
        assert (
            theory.phase(10**6, 1 + 1 / k - 0.02, k)
            < 1e-6
            < 1 - 1e-6
            < theory.phase(10**6, 1 + 1 / k + 0.02, k)
        )


@pytest.mark.parametrize(("n", "k"), [(2, 1), (8, 1), (8, 5), (24, 1)])
def test_worst_of_is_the_integral_over_the_shared_error(n, k):
    def integrand(q):
        return k * chi2.pdf(k * q, n) * (1 - (1 - ncx2.cdf(9, n, q)) ** 10)

    integral, _ = quad(integrand, 0, 300 / k, points=[n / k], limit=500)
    assert theory.worst_of(n, 3, 1, 10, k) == pytest.approx(integral, abs=1e-5)


def test_ten_tries_share_one_point():
    """They do not multiply: were the draws independent of each other given nothing, 0.19 would
    become 0.88.
    """
    assert theory.worst_of(8, 3, 1, 10, 1) < 1 - (1 - theory.eot(8, 3, 1, 1)) ** 10 - 0.1
