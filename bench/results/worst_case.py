"""The worst case over attacks, for each image.

Of a deterministic defense an image counts as right where it is right under all attacks. Of a
stochastic one the attacker has to choose: he tries each attack's point on all judged draws but one,
submits the point that was right least often, and is judged on the draw that is left. That is done
for each draw in turn and averaged. The chance that made a point look worst cannot enter, since the
draw that judges took no part in the choice: the mean is an unbiased estimate of what this attacker
leaves, whatever the attacks are, and lies above the lowest chance of each image (Carlini et al.,
arXiv 1902.06705) by what he loses where his draws cannot tell two points apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.results.aggregation import mean_over_seeds, verdicts
from bench.results.arrays import Bools, Floats
from bench.results.record import Record

_CLEARLY = 2.0


def worst_case(correct: Sequence[Bools]) -> Floats:
    """Each image's share of right answers under the attack that is chosen for it.

    Of attacks that tie, he leaves out those that are clearly weaker over all images, and takes any
    of the rest: their answers are averaged. To take the strongest where none is clearly so would
    bind the images together by chance, and no interval over images would know. With one attack it
    is that attack's own mean. Points with fewer judged draws than the others have are tried on
    fewer, and what they gain
    is measured on the draws that they share with the rest: there a score may be negative, and only
    their mean is a share.

    Args:
        correct: for each attack, bool (n, draws), draw j of all attacks being the same one. The
            number of draws is 1 for all attacks or at least 2 for each.

    Returns:
        float64 (n,), in [0, 1] where all attacks have as many draws.
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
    by_draws = [[one for one in correct if one.shape[1] == number] for number in sorted(draws)]
    chosen = _tried(by_draws.pop())
    scores: Floats = chosen.right.mean(axis=1)
    while by_draws:
        fewer = _tried(by_draws.pop())
        scores = scores + _gain(chosen, fewer)
        chosen = _better(chosen, fewer)
    return scores


@dataclass(frozen=True)
class _Tried:
    """What an attacker submits and what comes of it, for each image and each draw that judges.

    Attributes:
        share: of right answers in the draws that he tried, (n, draws), pulled half an answer
            towards one half.
        right: the share of right answers to the points that he may choose, (n, draws).
    """

    share: Floats
    right: Floats


def _tried(correct: Sequence[Bools]) -> _Tried:
    """Choose by all draws but one, for each draw; attacks of as many draws, at least two."""
    answers = np.array(correct, dtype=np.float64)  # attacks, n, draws
    tried = answers.sum(axis=2, keepdims=True) - answers
    count = tried.min(axis=0)
    tie = tried == count
    strong = tie & ~_clearly_weaker(tried)
    best = np.where(strong.any(axis=0), strong, tie)
    right = (answers * best).sum(axis=0) / best.sum(axis=0)
    return _Tried((count + 0.5) / answers.shape[2], right)


def _clearly_weaker(tried: Floats) -> Bools:
    """Where an attack is right more often over all images than the lowest one, by more than two
    standard errors of their difference; (attacks, 1, draws) from counts (attacks, n, draws). The
    draw that judges is not among those that are counted.
    """
    lowest = tried.mean(axis=1, keepdims=True).argmin(axis=0, keepdims=True)
    more = tried - np.take_along_axis(tried, lowest, axis=0)
    error = more.std(axis=1, keepdims=True) / np.sqrt(tried.shape[1])
    weaker: Bools = more.mean(axis=1, keepdims=True) > _CLEARLY * error
    return weaker


def _is_lower(one: _Tried, other: _Tried) -> Bools:
    """Where `other`, of fewer draws, looks worse for the defense, (n, fewer draws)."""
    return np.asarray(other.share < one.share[:, : other.share.shape[1]])


def _gain(one: _Tried, other: _Tried) -> Floats:
    """What it adds to the score to choose between both, on the draws they share, (n,)."""
    shared = other.right.shape[1]
    difference = (other.right - one.right[:, :shared]) * _is_lower(one, other)
    gain: Floats = difference.mean(axis=1)
    return gain


def _better(one: _Tried, other: _Tried) -> _Tried:
    """The choice between both, on the draws they share."""
    shared, lower = other.right.shape[1], _is_lower(one, other)
    return _Tried(
        np.where(lower, other.share, one.share[:, :shared]),
        np.where(lower, other.right, one.right[:, :shared]),
    )


def best_fresh(attacks: Sequence[Sequence[Bools]]) -> Floats:
    """Scores (n,) under the strongest attacker who does not know the draws: the worst attack for
    each image, mean over seeds.

    The single attack with the lowest mean leaves images unbroken that another one breaks, and a
    number that is too high for fresh randomness makes secret draws look worth more than they are.

    Args:
        attacks: for each seed, of each attack (n, N) on fresh draws; the points of a replay attack
            are points like any others.
    """
    return mean_over_seeds([worst_case(correct) for correct in attacks])


def attacked(record: Record) -> list[Bools]:
    """The verdicts of a record's attack, and those on the extra points that stand beside it, bool
    (n, draws): what a worst case is taken over.

    Points that were judged on a single draw of a stochastic defense are left out: nobody could
    choose them by another one.
    """
    own = record.outcomes.correct("adversarial")
    extra = record.extra_correct().values()
    return [own, *(one for one in extra if one.shape[1] > 1 or own.shape[1] == 1)]


def extra_verdicts(correct: Bools, draws: int) -> dict[str, Floats]:
    """Scores (n,) of extra points (n, m) under the rules of a row of so many draws, m of them at
    most: in fewer draws one that is right keeps the majority.
    """
    if correct.shape[1] == draws:
        return verdicts(correct, ())
    every, some = correct.all(axis=1).astype(np.float64), correct.any(axis=1).astype(np.float64)
    return {
        "one draw": correct[:, 0].astype(np.float64),
        f"mean of {draws}": correct.mean(axis=1),
        f"any of {draws} wrong": every,
        f"majority of {draws}": some,
    }
