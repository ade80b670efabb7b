"""The worst case over attacks, for each image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.results.aggregation import mean_over_seeds
from bench.results.arrays import Bools, Floats


def worst_case(correct: Sequence[Bools]) -> Floats:
    """Each image's share of right answers under the attack that is worst for it (Carlini et al.,
    arXiv 1902.06705).

    With one judged draw an attack, the defense is taken as deterministic: an image is right if it
    is right under all attacks. Otherwise the draws are split into even and odd ones: the attack is
    chosen on one half (lowest share right; of equals the one that is lower over all images) and its
    share reported on the other, both ways round, and the two are averaged. So the chance that
    made an attack look worst cannot enter the number, and with one attack it is that attack's
    own mean.

    Args:
        correct: for each attack, bool (n, draws). The number of draws is 1 for all attacks or at
            least 2 for each.

    Returns:
        float64 (n,) in [0, 1].
    """
    draws = {judged.shape[1] for judged in correct}
    if len({len(judged) for judged in correct}) != 1 or 0 in draws or (1 in draws and draws != {1}):
        raise ValueError(
            f"verdicts of shape {[judged.shape for judged in correct]} do not go together: give "
            "each attack the same images, and one draw for all attacks or at least two for each"
        )
    if draws == {1}:
        always: Bools = np.all([judged[:, 0] for judged in correct], axis=0)
        return always.astype(np.float64)
    even, odd = ([judged[:, start::2].mean(axis=1) for judged in correct] for start in (0, 1))
    return (_chosen(even, odd) + _chosen(odd, even)) / 2


def _chosen(choose: list[Floats], report: list[Floats]) -> Floats:
    """Choose each image's attack by one list of shares (n,), report its share from the other."""
    strongest_first = sorted(range(len(choose)), key=lambda attack: float(choose[attack].mean()))
    chosen = np.argmin([choose[attack] for attack in strongest_first], axis=0)
    shares: Floats = np.array([report[attack] for attack in strongest_first])[
        chosen, np.arange(chosen.size)
    ]
    return shares


def best_fresh(attacks: Sequence[Sequence[Bools]]) -> Floats:
    """Scores (n,) under the strongest attacker who does not know the draws: the worst attack for
    each image, mean over seeds.

    The single attack with the lowest mean leaves images unbroken that another one breaks, and a
    number that is too high for fresh randomness makes secret draws look worth more than they are.
    `worst_case` chooses on one half of the draws and reports on the other.

    Args:
        attacks: for each seed, of each attack (n, N) on fresh draws; the points of a replay attack
            are points like any others.
    """
    return mean_over_seeds([worst_case(correct) for correct in attacks])
