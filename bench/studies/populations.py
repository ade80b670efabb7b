"""Populations of images whose true numbers are known, for the study `coverage`: each case draws a
sample and asks the suite for the interval that it prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from bench.results.aggregation import any_of, mean_of_draws
from bench.results.arrays import Bools, Floats, Ints
from bench.results.comparisons import gap, gap_over_builds, mean_over_builds, ratio
from bench.results.estimate import Estimate
from bench.results.intervals import class_estimates, share, student_mean
from bench.results.worst_case import worst_case
from bench.studies.sets import area_interval, area_under_curve

Random = np.random.Generator
Sample = Callable[[Random], Estimate | None]
Chances = Callable[[Random, tuple[int, ...]], Floats]

SHARES = (0.02, 0.05, 0.2, 0.5, 0.8, 0.95, 0.98)
"""True shares; `_some` are enough where there are many cases."""

CLASSES, ATTACKS, BUILDS = (2, 10), (2, 5, 10), (2, 3, 5)

DRAWS = 20

_LARGE = 400_000
"""Images of a population whose mean has no formula: its standard error is below 0.001."""


@dataclass(frozen=True)
class Case:
    """One interval in one place.

    Attributes:
        interval: what is printed.
        n: images of a sample.
        draws: judged draws an image.
        parts: classes, attacks or builds; 0 where it has none.
        population: what the images are like.
        share: of right answers in the population, before any choice.
        truth: the number that the interval should hold.
        sample: draws a sample; None where nothing is printed.
        limit: of a worst case, the mean of each image's lowest chance; otherwise as `truth`.
    """

    interval: str
    n: int
    draws: int
    parts: int
    population: str
    share: float
    truth: float
    sample: Sample
    limit: float


def _some(n: int) -> tuple[float, ...]:
    """Fewer where a sample takes long."""
    return SHARES[:: 3 if n >= 1000 else 2]


def cases(n: int) -> Iterator[Case]:
    """All cases of samples of n images."""
    yield from _means(n)
    yield from _scores(n)
    yield from _pairs(n)
    yield from _worst_cases(n)
    yield from _over_builds(n)
    yield from _numbers(n)


# Shares -------------------------------------------------------------------------------------------


def beta(mean: float, agreement: float, random: Random, shape: tuple[int, ...]) -> Floats:
    """Chances of being right with this mean; `agreement` is the correlation of two draws of an
    image, 0 where all images are alike and 1 where no draw matters.
    """
    if agreement == 0:
        return np.full(shape, mean)
    if agreement == 1:
        return (random.random(shape) < mean).astype(np.float64)
    size = 1 / agreement - 1
    return random.beta(mean * size, (1 - mean) * size, shape)


def open_half(mean: float, random: Random, shape: tuple[int, ...]) -> Floats:
    """Some images are open, right in half of their draws; the others are all right, or all
    wrong.
    """
    settled = float(mean > 0.5)
    return np.where(random.random(shape) < abs(2 * mean - 1), settled, 0.5)


def few_apart(mean: float, random: Random, shape: tuple[int, ...]) -> Floats:
    """All alike but one in a hundred, which is lost where the others mostly stand, or the other way
    round.
    """
    lost = float(mean < 0.5)
    return np.where(random.random(shape) < 0.01, lost, (mean - 0.01 * lost) / 0.99)


_KINDS: dict[str, Callable[[float, Random, tuple[int, ...]], Floats]] = {
    "all alike": lambda mean, random, shape: beta(mean, 0, random, shape),
    "differing": lambda mean, random, shape: beta(mean, 0.2, random, shape),
    "settled": lambda mean, random, shape: beta(mean, 0.7, random, shape),
    "open or settled": open_half,
    "few apart": few_apart,
}


def answers(chances: Floats, draws: int, random: Random) -> Bools:
    """Verdicts (n, draws) of images with these chances (n,)."""
    return random.random((len(chances), draws)) < chances[:, None]


def _means(n: int) -> Iterator[Case]:
    for mean in SHARES:
        once = partial(_mean_sample, partial(beta, mean, 1), n, 1, 1)
        yield Case("share", n, 1, 0, "any", mean, mean, once, mean)
        for name, kind in _KINDS.items():
            of_draws = partial(_mean_sample, partial(kind, mean), n, DRAWS, 1)
            yield Case("mean over draws", n, DRAWS, 0, name, mean, mean, of_draws, mean)
    for mean in SHARES:
        chances = beta(mean, 0.7, np.random.default_rng(0), (_LARGE,))
        truth = float((chances**5).mean())
        if 0.02 <= truth <= 0.98:
            tried = partial(_mean_sample, partial(beta, mean, 0.7), n, DRAWS, 5)
            yield Case("any of m wrong", n, DRAWS, 0, "settled", mean, truth, tried, truth)


def _mean_sample(chances: Chances, n: int, draws: int, tries: int, random: Random) -> Estimate:
    correct = answers(chances(random, (n,)), draws, random)
    return share(mean_of_draws(correct) if tries == 1 else any_of(correct, tries))


# Scores over classes ------------------------------------------------------------------------------


def _scores(n: int) -> Iterator[Case]:
    for K in CLASSES:
        for population in ("even", "uneven", "into one class"):
            for mean in _some(n):
                sizes, confusion = _confusion(K, population, mean)
                hits, named = sizes * np.diag(confusion), sizes @ confusion
                f1 = float((2 * hits / (sizes + named)).mean())
                for draws in (1, DRAWS):
                    for place, (name, truth) in enumerate(
                        (("balanced accuracy", mean), ("macro-F1", f1))
                    ):
                        sample = partial(_score_sample, sizes, confusion, n, draws, place)
                        yield Case(name, n, draws, K, population, mean, truth, sample, truth)


def _confusion(K: int, population: str, mean: float) -> tuple[Floats, Floats]:
    """Shares of the classes (K,), and how each is answered (K, K), right with chance `mean`."""
    sizes = np.full(K, 1 / K)
    if population == "uneven":
        first = 0.8 if K == 2 else 0.3
        sizes = np.array([first, *[(1 - first) / (K - 1)] * (K - 1)])
    confusion = np.full((K, K), (1 - mean) / (K - 1))
    if population == "into one class":
        confusion[1:] = 0
        confusion[1:, 0] = 1 - mean
    confusion[np.arange(K), np.arange(K)] = mean
    return sizes, confusion


def class_sample(
    sizes: Floats, confusion: Floats, n: int, draws: int, random: Random
) -> tuple[Ints, Ints]:
    """Labels (n,) and predictions (n, draws); two draws of an image agree more than by chance."""
    labels = random.choice(len(sizes), size=n, p=sizes)
    chances = confusion[labels]
    if draws > 1:
        parts = random.standard_gamma(chances + 1e-9)
        chances = parts / parts.sum(axis=1, keepdims=True)
    chances[:, -1] = 1 - chances[:, :-1].sum(axis=1)
    counts = random.multinomial(draws, np.clip(chances, 0, 1))
    named = np.tile(np.arange(len(sizes)), n)
    return labels, np.repeat(named, counts.ravel()).reshape(n, draws)


def _score_sample(
    sizes: Floats, confusion: Floats, n: int, draws: int, place: int, random: Random
) -> Estimate:
    labels, predictions = class_sample(sizes, confusion, n, draws, random)
    return class_estimates(labels, predictions, len(sizes))[place]


# Pairs --------------------------------------------------------------------------------------------


def _pairs(n: int) -> Iterator[Case]:
    for mean in SHARES:
        for name, kept in _KEPT.items():
            for draws in (1, DRAWS):
                sample = partial(_pair_sample, name, mean, kept, n, draws)
                loss, left = mean * (kept - 1), kept
                yield Case("gap", n, draws, 0, name, mean, loss, partial(sample, gap), loss)
                yield Case("ratio", n, draws, 0, name, mean, left, partial(sample, ratio), left)


_KEPT = {"kept in part": 0.7, "mostly lost": 0.2, "alike": 1.0, "few lost": 0.97, "unrelated": 1.0}
"""What the first of a pair keeps of the second's chance of being right."""


def _pair_sample(
    population: str,
    mean: float,
    kept: float,
    n: int,
    draws: int,
    compare: Callable[[Floats, Floats], Estimate | None],
    random: Random,
) -> Estimate | None:
    """The second is right with chance `mean`, the first with `kept` of that."""
    second = beta(mean, 0.7, random, (n,))
    first = second * kept
    if population == "few lost":
        first = second * (random.random(n) < kept)
    elif population == "unrelated":
        first = beta(mean, 0.7, random, (n,))
    one, other = (mean_of_draws(answers(chances, draws, random)) for chances in (first, second))
    return compare(one, other)


# Worst cases --------------------------------------------------------------------------------------


def _worst_cases(n: int) -> Iterator[Case]:
    for attacks in ATTACKS:
        for population in ("alike", "independent", "related", "one stronger"):
            for mean in _some(n):
                chances = partial(attack_chances, population, mean, attacks)
                truth, limit = worst_truth(population, mean, attacks)
                sample = partial(_worst_sample, chances, n)
                name = "worst case over attacks"
                yield Case(name, n, DRAWS, attacks, population, mean, truth, sample, limit)


def attack_chances(
    population: str, mean: float, attacks: int, random: Random, shape: tuple[int, ...]
) -> Floats:
    """Chances (n, attacks) of being right under each attack."""
    n = shape[0]
    image = beta(mean, 0.5, random, (n, 1))
    if population == "alike":
        return np.repeat(image, attacks, axis=1)
    if population == "independent":
        return beta(mean, 0.5, random, (n, attacks))
    if population == "related":
        odds = np.log(image.clip(1e-6, 1 - 1e-6) / (1 - image).clip(1e-6, 1))
        return np.asarray(expit(odds + random.normal(size=(n, attacks))), dtype=np.float64)
    # One attack, another one for each image, takes a tenth of what is left to every image.
    chances = np.full((n, attacks), mean)
    chances[np.arange(n), random.integers(attacks, size=n)] = 0.9 * mean
    return chances


@cache
def worst_truth(population: str, mean: float, attacks: int) -> tuple[float, float]:
    """What the attacker leaves who tries each attack on 19 draws and submits one, and the mean of
    each image's lowest chance: by a large population.
    """
    random = np.random.default_rng(1)
    chances = attack_chances(population, mean, attacks, random, (_LARGE // 2,))
    tried = random.binomial(DRAWS - 1, chances)
    submitted = np.argmin(tried + random.random(tried.shape) * 0.5, axis=1)
    left = np.take_along_axis(chances, submitted[:, None], axis=1)
    return float(left.mean()), float(chances.min(axis=1).mean())


def _worst_sample(chances: Chances, n: int, random: Random) -> Estimate:
    each = chances(random, (n,))
    return share(worst_case([answers(column, DRAWS, random) for column in each.T]))


# Builds -------------------------------------------------------------------------------------------


def _over_builds(n: int) -> Iterator[Case]:
    for builds in BUILDS:
        for scatter in (0.0, 0.2, 0.6):
            for mean in _some(n):
                for draws in (1, DRAWS):
                    place = (n, draws, builds, f"scatter {scatter:g}", mean)
                    sample = partial(_builds_sample, mean, scatter, builds, n, draws)
                    over = partial(sample, mean_over_builds)
                    yield _build_case("mean over builds", place, mean, over)
                    yield _build_case("gap over builds", place, 0.0, partial(sample, None))


def _build_case(
    name: str, place: tuple[int, int, int, str, float], truth: float, sample: Sample
) -> Case:
    return Case(name, *place, truth, sample, truth)


@cache
def _offset(mean: float, variance: float) -> float:
    """The log odds around which a logistic-normal chance has this mean, by bisection."""
    normal = norm.ppf((np.arange(4000) + 0.5) / 4000) * np.sqrt(variance)
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(normal + middle).mean() < mean else (low, middle)
    return low


def _builds_sample(
    mean: float,
    scatter: float,
    builds: int,
    n: int,
    draws: int,
    over: Callable[[Floats], Estimate] | None,
    random: Random,
) -> Estimate:
    """Log odds: an image's own, a build's own, and what one does to the other."""
    images = 2 * random.normal(size=n) + _offset(mean, 5 + scatter**2)

    def built() -> Floats:
        odds = images + scatter * random.normal(size=(builds, 1)) + random.normal(size=(builds, n))
        return np.asarray(random.binomial(draws, expit(odds)) / draws, dtype=np.float64)

    return over(built()) if over else gap_over_builds(built(), built())


# Other numbers ------------------------------------------------------------------------------------


def _numbers(n: int) -> Iterator[Case]:
    """Means of measurements that are no shares; the area under a curve of n members and n others,
    which is slow to resample.
    """
    for area in (0.5, 0.7, 0.9) if n <= 100 else ():
        above = partial(_area_sample, area, n)
        yield Case("area under a curve", n, 1, 0, "normal", area, area, above, area)
    for population, truth in (("normal", 0.0), ("uniform", 0.5), ("exponential", 1.0)):
        sample = partial(_number_sample, population, n)
        yield Case("mean of measurements", n, 1, 0, population, truth, truth, sample, truth)


def _number_sample(population: str, n: int, random: Random) -> Estimate:
    if population == "normal":
        return student_mean(random.normal(size=n))
    return student_mean(random.random(n) if population == "uniform" else random.exponential(size=n))


def _area_sample(area: float, n: int, random: Random) -> Estimate:
    """Scores whose means are so far apart that a member lies above another one with chance
    `area`.
    """
    members = random.normal(size=n) + np.sqrt(2) * norm.ppf(area)
    others = random.normal(size=n)
    low, high = area_interval(members, others, int(random.integers(1 << 30)), 200)
    value = area_under_curve(members, others)
    return Estimate(value, low, high)
