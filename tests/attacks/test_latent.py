"""Attacks on features: exact optima of a linear map, guides, views, refusals."""

from functools import partial

import numpy as np
import pytest
import torch
from bench_attacks.latent import Latent, choose_guides, closeness, guide_outputs
from scipy.optimize import lsq_linear
from torch import nn

from bench.data.dataset import ImageSet
from bench.defense import Setting
from bench.losses import RowLoss
from bench.models.classifier import Classifier
from bench.models.nets import ARCHITECTURES, LayerList
from bench.noise import Noise, Stream, isolated
from bench.randomness import RandomnessModel
from bench.testing import AttackContract
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.toys import NoisyLinear, linear_problem, message

EPS = 0.1


@pytest.fixture(autouse=True)
def fresh_weights():
    """Networks made here draw their first weights."""
    with isolated(0):
        yield


class TestLatentContract(AttackContract):
    attack = "latent:steps=10,guides=2"


class TestLatentByGradientSteps(AttackContract):
    attack = "latent:optimiser=pgd,steps=8,guides=2"


class Mapped(nn.Module):
    """A linear feature map, and a head that answers class 0 whatever it is given."""

    def __init__(self, features=20, pixels=16):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(pixels, features))
        self.head = nn.Linear(features, 2)
        with torch.no_grad():
            self.body[1].weight.copy_(torch.randn(features, pixels, generator=generator))
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor([1.0, 0.0]))

    def forward(self, x):
        return self.head(self.body(x))


def images(n=6, seed=0):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def evaluated(n=6):
    pixels, labels = images(n), torch.arange(n) % 2
    return ImageSet(pixels, labels, np.arange(n) * 3)


def test_it_reaches_the_exact_features_inside_ball_and_box():
    model, pool = Classifier(Mapped(), 2).eval(), evaluated()
    everything = torch.arange(6)
    labels = torch.zeros(6, dtype=torch.int64)
    victim = Victim(model, pool.ids)
    victim.evaluated = pool
    attack = Latent(steps=100, guides=1)
    with frozen(model):
        guides, _ = choose_guides(victim, pool.images, labels, 1)
        points = attack(victim, pool.images, labels, ThreatModel("linf", EPS)).points
        body = model.network.body
        got = (body(points) - body(guides[:, 0])).square().sum(1) / 2
        weight, offset = body[1].weight.double().numpy(), body[1].bias.double().numpy()
    x = pool.images.flatten(1).double().numpy()
    for i in everything:
        low, high = (x[i] - EPS).clip(0), (x[i] + EPS).clip(max=1)
        wanted = body(guides[i]).detach().double().numpy()[0] - offset
        exact = lsq_linear(weight, wanted, (low, high), method="bvls", tol=1e-14)
        assert float(got[i]) == pytest.approx(exact.cost, rel=1e-5, abs=1e-5)


def chosen(order, labels, count, pool):
    victim = Victim(Classifier(Mapped(), 2), pool.ids[order])
    victim.evaluated = pool
    return choose_guides(victim, pool.images[order], labels[order], count)


def test_guides_are_of_other_classes_and_an_images_own():
    """In whatever batch, and whatever the order of the evaluated images."""
    labels = torch.arange(12) % 4
    pool = ImageSet(images(12), labels, np.arange(12) * 5)
    order = np.arange(12)
    guides, has_any = chosen(order, labels, 3, pool)
    assert has_any.all()
    where = [[int((pool.images == g).flatten(1).all(1).nonzero()) for g in gs] for gs in guides]
    classes = labels[torch.tensor(where)]
    assert (classes != labels[:, None]).all()
    assert all(len(set(row)) == 3 for row in classes.tolist()), "spread over the classes"
    assert len({tuple(row) for row in where}) > 3
    backwards = order[::-1].copy()
    assert torch.equal(chosen(backwards, labels, 3, pool)[0].flip(0), guides)
    turned = pool.at(backwards)
    again = chosen(order, labels[backwards], 3, turned)[0].flip(0)
    assert torch.equal(again, guides)
    assert torch.equal(chosen(order[4:5], labels, 3, pool)[0], guides[4:5])


def test_without_another_class_an_image_is_left_alone():
    pool = ImageSet(images(4), torch.zeros(4, dtype=torch.int64), np.arange(4))
    victim = Victim(Classifier(Mapped(), 2).eval(), pool.ids)
    victim.evaluated = pool
    result = Latent()(victim, pool.images, pool.labels, ThreatModel("linf", EPS))
    assert torch.equal(result.points, pool.images) and int(victim.backwards.sum()) == 0


def features_of(network, x, classes=10):
    model = Classifier(network, classes).eval()
    assert model.views() == ("logits", "features")
    noise = Noise.of(0, Stream.ATTACK, np.arange(len(x)))
    with torch.no_grad():
        return model, model.forward_pass("full", "features")(x, noise), model(x)


@pytest.mark.parametrize("name", ["cnn", "flat", "resnet8", "wrn16-4"])
def test_shipped_networks_offer_the_input_of_their_last_layer(name):
    network = ARCHITECTURES[name](10, 3)
    _, features, logits = features_of(network, torch.rand(2, 3, 32, 32))
    assert torch.allclose(network.linear(features), logits, atol=1e-5)


def test_a_layer_list_offers_the_input_of_its_last_layer():
    network = LayerList([["flat"], ["lin", 16, 5], ["relu"], ["lin", 5, 10]])
    _, features, logits = features_of(network, images(2))
    assert torch.allclose(network[-1](features), logits)


class Foreign(nn.Module):
    """A network with a part called `features`, as VGG has, and a layer behind its head's place."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(8, 10)
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU())
        self.unused = nn.Linear(3, 10)

    def forward(self, x):
        return 2 * self.classifier(self.features(x).mean((2, 3)))


def test_a_users_network_offers_what_its_head_is_given():
    network = Foreign()
    model, features, logits = features_of(network, images(3))
    assert features.shape == (3, 8)
    assert torch.allclose(2 * network.classifier(features), logits)
    assert not any(part._forward_pre_hooks for part in model.modules())
    x = images(3).requires_grad_()
    noise = Noise.of(0, Stream.ATTACK, np.arange(3))
    (slope,) = torch.autograd.grad(model.forward_pass("full", "features")(x, noise).sum(), x)
    assert bool(slope.abs().sum() > 0)


def test_without_a_linear_layer_there_are_no_features_and_logits_are_matched():
    network = nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten())
    model = Classifier(network, 2).eval()
    assert model.views() == ("logits",)
    pool = evaluated()
    victim = Victim(model, pool.ids)
    with frozen(model):
        result = Latent(steps=2)(victim, pool.images, pool.labels, ThreatModel("linf", EPS))
        assert [finding.name for finding in result.findings] == ["latent-logits"]
        text = message(
            lambda: Latent(view="branch")(
                victim, pool.images, pool.labels, ThreatModel("linf", EPS)
            )
        )
    assert "no view 'branch'" in text


def setting(stochastic=False, randomness="fresh", norm="linf"):
    return Setting(stochastic, RandomnessModel(randomness), ThreatModel(norm, 0.1), 10, (1, 28, 28))


def test_what_makes_no_sense_is_refused():
    for attack, where, words in (
        (Latent(), setting(norm="l2"), "optimiser=pgd"),
        (Latent(), setting(stochastic=True), "latent+replay"),
        (Latent(restarts=2), setting(), "random_start=true"),
    ):
        assert words in message(lambda attack=attack, where=where: attack.check(where))
    Latent(optimiser="pgd").check(setting(norm="l2"))
    Latent(optimiser="pgd").check(setting(stochastic=True))
    Latent().check(setting(stochastic=True, randomness="replay"))
    Latent(restarts=2, random_start=True).check(setting())


@pytest.mark.parametrize("average", ["loss", "logits"])
def test_replayed_draws_are_compared_each_with_its_own(average):
    """At the guides themselves the distance is 0 under every draw, and in part of the rows too."""
    model, pixels, labels = linear_problem(2, 12, active_box=True)
    victim = Victim(
        NoisyLinear(model, 0.3),
        np.arange(12),
        randomness=RandomnessModel("replay-set", 3, average),
    )
    wanted = guide_outputs(victim, pixels, "logits", 0)
    assert wanted.shape == (12, 3 if average == "loss" else 1, 2)
    loss = RowLoss(partial(closeness, wanted))
    some = torch.tensor([7, 3])
    read = victim.objective(labels, loss, rows=some)(pixels[some], torch.arange(2), 0, True)
    assert float(read.value.abs().max()) < 1e-6
    far = victim.objective(labels, loss, rows=some)(pixels[:2], torch.arange(2), 0, True)
    assert float(far.value.max()) < -1e-3


@pytest.mark.parametrize("randomness", ["replay-set", "fresh"])
def test_random_defenses_are_attacked_draw_by_draw(randomness):
    model, pixels, labels = linear_problem(2, 12, active_box=True)
    noisy = NoisyLinear(model, 0.1)
    k = 3 if randomness == "replay-set" else 1
    optimiser = "lbfgs" if randomness == "replay-set" else "pgd"
    victim = Victim(noisy, np.arange(12), randomness=RandomnessModel(randomness, k))
    threat = ThreatModel("linf", 0.2)
    with frozen(model):
        attack = Latent(steps=20, optimiser=optimiser)
        points = attack(victim, pixels, labels, threat).points
    wrong = model(points).argmax(1) != labels
    assert threat.contains(points, pixels).all() and wrong.any()
