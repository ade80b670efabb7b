"""Randomised models with closed forms: they tell fresh, EOT, replay, mean, majority and any-wrong
apart.
"""

import numpy as np
import pytest
import torch
from bench_attacks.pgd import PGD, PGDParams
from scipy.stats import binom, norm
from torch.nn import functional as F

import bench.noise
from bench.defense import DefendedClassifier
from bench.noise import Noise, Stream, pack_draw
from bench.randomness import Query, judging, read_randomness
from bench.results.metrics import accuracy
from bench.threat import ThreatModel
from bench.victim import Victim, frozen, predict
from tests.results.helpers import outcomes_of
from tests.toys import NoisyLinear, linear_problem

N, SIGMA, DRAWS = 400, 0.05, 20
EPS = 0.02


@pytest.fixture(scope="module")
def problem():
    linear, images, labels = linear_problem(2, N, active_box=False)
    gap = (linear.weight[0] - linear.weight[1]).detach().double()
    offset = float((linear.bias[0] - linear.bias[1]).detach())
    sign = torch.where(labels == 0, 1.0, -1.0).double()
    clean = sign * (images.flatten(1).double() @ gap + offset)
    return NoisyLinear(linear, SIGMA).eval(), images, labels, gap, sign, clean


def attacked(problem, randomness: str, seed: int = 0):
    model, images, labels, *_ = problem
    attack = PGD(PGDParams(steps=10, step="eps/2", random_start=False))
    with frozen(model):
        victim = Victim(model, np.arange(N), randomness=read_randomness(randomness), root=seed)
        return attack(victim, images, labels, ThreatModel("linf", EPS))


def judged(problem, points, seed: int = 0):
    model, _, labels, *_ = problem
    victim = Victim(model, np.arange(N), randomness=judging(DRAWS), root=seed)
    return (predict(victim.logits(points, torch.arange(N), Query())) == labels[:, None]).numpy()


def within(value: float, expected: np.ndarray) -> bool:
    """Within four standard errors of the mean of independent events with these probabilities."""
    error = np.sqrt((expected * (1 - expected)).sum()) / len(expected)
    return abs(value - expected.mean()) < 4 * error + 1e-3


@pytest.mark.parametrize("randomness", ["fresh", "eot:k=5", "eot:k=5,average=logits"])
def test_fresh_draws_meet_their_closed_forms(problem, randomness):
    *_, gap, _, clean = problem
    result = attacked(problem, randomness)
    assert result.predictions.shape == (N, 0), (
        "under fresh randomness no draw of the attack is a verdict"
    )
    # The optimal perturbation lowers the margin by eps |w|_1; Gaussian noise then decides.
    right = norm.cdf(((clean - EPS * gap.abs().sum()) / (SIGMA * gap.norm())).numpy())
    correct = judged(problem, result.points)
    judged_accuracy = accuracy(outcomes_of(correct), "clean")
    assert within(correct[:, 0].mean(), right)
    assert within(judged_accuracy.mean.value, right)
    assert within(judged_accuracy.all_draws.value, right**DRAWS)
    assert within(judged_accuracy.majority.value, binom.sf(DRAWS // 2, DRAWS, right))
    assert 0.2 < right.mean() < 0.8


def test_the_null_attack_shows_chance_hits(problem):
    model, images, labels, gap, _, clean = problem
    right = norm.cdf((clean / (SIGMA * gap.norm())).numpy())
    judged_accuracy = accuracy(outcomes_of(judged(problem, images)), "clean")
    assert within(judged_accuracy.mean.value, right)
    assert within(judged_accuracy.all_draws.value, right**DRAWS)
    assert judged_accuracy.all_draws.value < judged_accuracy.mean.value - 0.05


def test_replay_is_exact_image_by_image(problem):
    """Under replay the function is deterministic: the fixed noise tells which images can be
    broken.
    """
    model, images, labels, gap, sign, clean = problem
    result = attacked(problem, "replay")
    fixed_noise = (
        Noise.of(0, Stream.FIXED, range(N), 0)
        .at("forward")
        .normal("gauss", (1, 4, 4))
        .flatten(1)
        .double()
    )
    margin = clean + SIGMA * sign * (fixed_noise @ gap) - EPS * gap.abs().sum()
    clear = margin.abs() > 0.02 * EPS * gap.abs().sum()
    survives = (result.predictions[:, 0] == labels).numpy()
    assert (survives == (margin > 0).numpy())[clear.numpy()].all()
    right = norm.cdf(((clean - EPS * gap.abs().sum()) / (SIGMA * gap.norm())).numpy())
    assert within(survives.mean(), right)


def test_replay_retires_what_it_breaks_and_fresh_does_not(problem):
    model, images, labels, *_ = problem
    attack = PGD(PGDParams(steps=10))
    counts = {}
    for randomness in ("fresh", "replay"):
        with frozen(model):
            victim = Victim(model, np.arange(N), randomness=read_randomness(randomness))
            attack(victim, images, labels, ThreatModel("linf", EPS))
        counts[randomness] = victim.backwards
    assert (counts["fresh"] == 10).all()
    assert counts["replay"].min() <= 1
    assert counts["replay"].max() == 10
    assert counts["replay"].float().mean() < 8


class RandomWeights(DefendedClassifier):
    """A two-class linear model whose weight vector is drawn anew: its gradient direction belongs to
    the draw.
    """

    stochastic = True
    num_classes = 2

    def __init__(self, centre: torch.Tensor, sigma: float) -> None:
        super().__init__()
        self.centre, self.sigma = centre, sigma

    def weights(self, noise: Noise) -> torch.Tensor:
        return self.centre + self.sigma * noise.normal("weights", tuple(self.centre.shape))

    def forward(self, images, noise):
        value = (self.weights(noise) * (images.flatten(1) - 0.5)).sum(1)
        return torch.stack([value, -value], 1)


def random_weights_rates(randomness: str, seed: int = 0):
    """Share right under the attack's fixed noise (None without) and on fresh draws, and the closed
    form of the former.
    """
    n, d, eps, sigma = 400, 64, 0.35, 1.0
    centre = F.normalize(torch.ones(d), dim=0)
    generator = torch.Generator().manual_seed(0)
    images = (
        0.5
        + 0.03 * torch.randn(n, 1, 8, 8, generator=generator)
        + 0.03 * centre.reshape(1, 1, 8, 8)
    )
    model = RandomWeights(centre, sigma)
    labels = torch.zeros(n, dtype=torch.int64)
    threat = ThreatModel("l2", eps)
    victim = Victim(model, np.arange(n), randomness=read_randomness(randomness), root=seed)
    result = PGD(PGDParams(steps=20, step="eps/2", loss="margin"))(victim, images, labels, threat)
    fixed_noise = Noise.of(seed, Stream.FIXED, range(n), 0).at("forward")
    weights = model.weights(fixed_noise).double()
    reachable = (weights * (images.flatten(1) - 0.5)).sum(1) - eps * weights.norm(dim=1)
    observer = Victim(model, np.arange(n), randomness=judging(DRAWS), root=seed)
    fresh = (predict(observer.logits(result.points, torch.arange(n), Query())) == 0).float().mean()
    replayed = (result.predictions == 0).float().mean() if result.predictions.numel() else None
    return replayed, float(fresh), float((reachable > 0).float().mean())


def test_replay_breaks_what_fresh_and_eot_cannot():
    replayed, transferred, exact = random_weights_rates("replay")
    _, fresh, _ = random_weights_rates("fresh")
    _, eot, _ = random_weights_rates("eot:k=20")
    assert replayed == pytest.approx(exact, abs=0.01)
    assert replayed < 0.05
    assert min(fresh, eot, transferred) > replayed + 0.15
    assert eot <= fresh + 0.02


def test_replay_set_is_judged_under_its_own_fixed_noises():
    centre = F.normalize(torch.ones(64), dim=0)
    model = RandomWeights(centre, 1.0)
    images = torch.full((30, 1, 8, 8), 0.5)
    victim = Victim(model, np.arange(30), randomness=read_randomness("replay-set:k=3"))
    result = PGD(PGDParams(steps=3))(
        victim, images, torch.zeros(30, dtype=torch.int64), ThreatModel("l2", 0.3)
    )
    assert result.predictions.shape == (30, 3)
    assert (victim.backwards == 9).all(), (
        "the mean over several fixed noises is no single verdict: nothing retires"
    )


def check_the_judge_draws_afresh(problem):
    """A replay attack's success under its fixed noise must not settle the judge's first draw."""
    *_, labels, _, _, _ = problem
    replay = attacked(problem, "replay")
    on_fixed_noise = (replay.predictions[:, 0] == labels).numpy()
    afresh = judged(problem, replay.points)[:, 0]
    assert (on_fixed_noise != afresh).mean() > 0.05


def test_the_judge_draws_afresh(problem):
    check_the_judge_draws_afresh(problem)


def test_a_leaked_seed_is_caught(problem, monkeypatch):
    key = bench.noise.philox_key
    monkeypatch.setattr(
        bench.noise, "philox_key", lambda root, stream, *rest: key(root, Stream.FIXED, *rest)
    )
    with pytest.raises(AssertionError):
        check_the_judge_draws_afresh(problem)


def test_the_judge_and_the_attack_share_no_draw():
    rows = range(50)
    streams = {s: Noise.of(0, s, rows, 0).normal("x", (8,)) for s in Stream}
    for a in streams:
        for b in streams:
            if a != b:
                assert not torch.isclose(streams[a], streams[b]).all(1).any()
    assert pack_draw(0, 1) != pack_draw(1, 0)
