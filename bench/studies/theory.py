"""Success probabilities of attacks on a classifier behind Gaussian noise, in closed form.

The classifier sees u = x + delta + sigma r in n dimensions, with r standard normal: the defense's
randomness. The attack chooses delta, of any length or of at most `eps`, and succeeds where u lies
in an adversarial set: a ball of radius R, or a half-space. It is judged on a draw r' that it did
not see (fresh noise) or on the fixed noise that it did see (replay). F_n is the distribution
function of the chi-squared distribution with n degrees of freedom, F_n(q; c) that of the noncentral
one with noncentrality c.

The attack on the ball centres the mean of the states that it sees: delta = c - x - sigma (r_1 + ...
+ r_k)/k, c the ball's centre. That is where gradient ascent on the mean margin R^2 - |u - c|^2 of k
draws ends (EOT; Athalye et al. 2018, arXiv 1707.07397). k = inf is ideal EOT, delta = c - x, which
uses the expectation itself; of all delta that do not depend on r' it is the best (see `ideal`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import roots_legendre
from scipy.stats import chi2, ncx2, norm

Floats = npt.NDArray[np.float64]

_NODES = 200


def eot(n: int, radius: float, sigma: float, k: float = math.inf) -> float:
    """Centring the mean of k draws, judged on one fresh draw: F_n(R^2 / (sigma^2 (1 + 1/k))).

    u - c = sigma (r' - mean of r_1..r_k) has variance sigma^2 (1 + 1/k) in each direction: the
    judge's noise and what is left of the attack's. k = 1 is an attack without EOT.
    """
    return centred_mass(n, radius, sigma, 1 + 1 / k)


def ideal(n: int, radius: float, sigma: float) -> float:
    """The most that any attack can reach on fresh noise, F_n(R^2 / sigma^2), which ideal EOT does.

    It bounds every delta that is independent of r', and every measurable adversarial set with the
    volume of the ball of this radius, connected or not: a Gaussian gives no set of that volume more
    mass than the ball around its mean.
    """
    return eot(n, radius, sigma)


def replay_set(n: int, radius: float, sigma: float, k: int) -> float:
    """Centring the mean of k fixed noises, judged on one of the same: F_n(R^2 / (sigma^2 (1 -
    1/k))); 1 for k = 1, plain replay.

    u - c = sigma (r_1 - mean of r_1..r_k) has variance sigma^2 (1 - 1/k) in each direction.
    """
    return centred_mass(n, radius, sigma, 1 - 1 / k) if k > 1 else 1.0


def worst_of(n: int, radius: float, sigma: float, tries: int, k: float = math.inf) -> float:
    """The best of `tries` fresh draws against one delta, centred by k draws: 1 - E[(1 -
    p(q))^tries].

    All tries share the attack's error: q, its squared length over sigma^2, is chi-squared over k,
    and p(q) = F_n(R^2/sigma^2; q). Ideal EOT (k = inf) has no error: 1 - (1 -
    F_n(R^2/sigma^2))^tries. The expectation is a Gauss-Legendre sum over the quantiles of q.
    """
    quantiles, weights = _legendre()
    errors = chi2.ppf(quantiles, n) / k  # q, distributed like chi-squared_n / k
    # 1 - E[(1 - p(q))^tries], with p(q) = F_n(R^2 / sigma^2; q).
    return float(np.sum(weights * (1 - (1 - _shifted(n, radius / sigma, errors)) ** tries)))


def descent(n: int, radius: float, sigma: float, k: int, step: float) -> float:
    """Gradient ascent on the margin with k fresh draws and a constant step eta, long after its
    start, judged on one fresh draw.

    delta += eta * gradient shrinks the error by 1 - 2 eta and adds 2 eta sigma times the mean draw,
    so its variance settles at sigma^2 eta / ((1 - eta) k): F_n(R^2 / (sigma^2 (1 + eta / ((1 - eta)
    k)))), 0 < eta < 1. At eta = 1/2 this is `eot`; smaller steps average over past draws, and reach
    the ideal for eta -> 0 with a single draw a step.
    """
    # Variance v of the error: v = (1 - 2 eta)^2 v + 4 eta^2 sigma^2 / k.
    return centred_mass(n, radius, sigma, 1 + step / ((1 - step) * k))


def clean(n: int, radius: float, sigma: float, distance: float) -> float:
    """No attack, the image at `distance` d from the centre: F_n(R^2/sigma^2; d^2/sigma^2)."""
    return float(_shifted(n, radius / sigma, (distance / sigma) ** 2))


def budget_eot(n: int, radius: float, sigma: float, distance: float, eps: float) -> float:
    """Ideal EOT with |delta| <= eps, judged on one fresh draw: F_n(R^2/sigma^2; max(d - eps,
    0)^2/sigma^2).
    """
    return clean(n, radius, sigma, max(distance - eps, 0))


def budget_replay(n: int, radius: float, sigma: float, distance: float, eps: float) -> float:
    """The noise known and |delta| <= eps: F_n((R + eps)^2/sigma^2; d^2/sigma^2), for u reaches the
    ball from R + eps away.

    With R, eps and d fixed this too tends to 0 as n grows.
    """
    return clean(n, radius + eps, sigma, distance)


def half_space(sigma: float, distance: float, eps: float) -> float:
    """A half-space at `distance` d under |delta| <= eps, Phi((eps - d)/sigma): fresh, EOT and
    replay alike.

    The best delta is eps along the normal, whatever the noise. A gap needs a best delta that
    depends on the noise.
    """
    return float(norm.cdf((eps - distance) / sigma))


def phase(n: int, rho: float, k: float = math.inf) -> float:
    """`eot` on a ball that grows with the dimension, R^2 = rho n sigma^2: F_n(rho n / (1 + 1/k)).

    As n grows it tends to 1 for rho > 1 + 1/k and to 0 for rho < 1 + 1/k. With R fixed it tends to
    0 for every k.
    """
    return eot(n, math.sqrt(rho * n), 1.0, k)


def centred_mass(n: int, radius: float, sigma: float, variance: float) -> float:
    """Mass of a ball around the mean of a normal distribution, whose variance is sigma^2 * variance
    in each direction: F_n(R^2 / (sigma^2 variance)).
    """
    return float(chi2.cdf(radius**2 / (sigma**2 * variance), n))


def _shifted(n: int, ratio: float, noncentrality: Floats | float) -> Floats:
    """Mass of the ball of radius `ratio` standard deviations around a point off the mean:
    F_n(ratio^2; noncentrality).
    """
    values: Floats = np.asarray(ncx2.cdf(ratio**2, n, noncentrality))
    return values


@lru_cache
def _legendre() -> tuple[Floats, Floats]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = roots_legendre(_NODES)
    return (nodes + 1) / 2, weights / 2
