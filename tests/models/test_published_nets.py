"""Published nets with known accuracy: clean numbers exactly, PGD numbers within the stated
tolerance.
"""

import numpy as np
import pytest
import torch
from bench_attacks.autoattack import AutoAttack
from bench_attacks.pgd import PGD, PGDParams

from bench.data.npz import Npz
from bench.models.file import File
from bench.randomness import Query
from bench.threat import ThreatModel
from bench.victim import Victim, frozen, predict


def load(real_data, net: str, data: str, n: int | None = None):
    everything = Npz(Npz.Params(path=str(real_data / f"data/{data}.npz"))).test()
    images = everything.first(n or len(everything))
    classifier = File(File.Params(path=str(real_data / f"models/{net}.safetensors"))).load(
        10, images.images.shape[1]
    )
    return classifier, images


def correct(classifier, images, pixels) -> torch.Tensor:
    with frozen(classifier):
        victim = Victim(classifier, images.ids)
        return (
            predict(victim.logits(pixels, torch.arange(len(images)), Query())[:, 0])
            == images.labels
        )


def attack(classifier, images, eps: float, **params):
    """Robust accuracy under PGD in percent."""
    return robust(classifier, images, eps, PGD(PGDParams(**params)))


def robust(classifier, images, eps: float, attack):
    """Robust accuracy in percent, with points re-checked against ball and box."""
    pixels, threat = images.pixels(), ThreatModel("linf", eps)
    clean = correct(classifier, images, pixels)
    with frozen(classifier):
        result = attack(Victim(classifier, images.ids), pixels, images.labels, threat)
    assert threat.contains(result.points, pixels).all()
    return 100 * float(((result.predictions[:, 0] == images.labels) & clean).float().mean())


def test_an_undefended_net_is_broken_completely(real_data):
    classifier, images = load(real_data, "cifar_resnet20", "cifar10_exact")
    assert attack(classifier, images, 8 / 255, steps=20, step="2/255") == 0


@pytest.mark.parametrize(("net", "robust"), [("cifar_kw_wide", 55.65), ("cifar_cnn_a_adv", 52.02)])
def test_pgd_on_robust_cifar_nets(real_data, net, robust):
    classifier, images = load(real_data, net, "cifar10_exact")
    assert attack(classifier, images, 2 / 255, steps=40, step="eps/16") == pytest.approx(
        robust, abs=0.5
    )


def test_pgd_on_a_certified_mnist_net(real_data):
    classifier, images = load(real_data, "mnist_kw_0.1", "mnist", 1000)
    assert attack(classifier, images, 0.1, steps=40, step="0.01") == pytest.approx(95.4, abs=0.2)


@pytest.mark.parametrize("n", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_autoattack_leaves_nothing_of_an_undefended_net(real_data, n):
    classifier, images = load(real_data, "cifar_resnet20", "cifar10_exact", n)
    assert robust(classifier, images, 8 / 255, AutoAttack(AutoAttack.Params())) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("net", "data", "eps"),
    [
        ("cifar_kw_wide", "cifar10_exact", 2 / 255),
        ("cifar_cnn_a_adv", "cifar10_exact", 2 / 255),
        ("mnist_kw_0.1", "mnist", 0.1),
    ],
)
def test_autoattack_leaves_no_more_than_long_pgd(real_data, net, data, eps):
    classifier, images = load(real_data, net, data, 100)
    pgd = attack(classifier, images, eps, steps=100, step="eps/16")
    accuracy = robust(classifier, images, eps, AutoAttack(AutoAttack.Params()))
    print(f"{net}, first 100: PGD-100 {pgd:.1f}, AutoAttack {accuracy:.1f}")
    assert accuracy <= pgd


@pytest.mark.slow
def test_long_pgd_on_all_of_mnist(real_data):
    classifier, images = load(real_data, "mnist_kw_0.1", "mnist")
    accuracy = attack(classifier, images, 0.1, steps=100, step="0.01", random_start=False)
    print(f"mnist_kw_0.1, 10,000 images, PGD-100: {accuracy:.2f}")
    assert accuracy == pytest.approx(95.94, abs=0.1)


def test_images_are_the_official_ones_in_official_order(real_data):
    _, images = load(real_data, "cifar_resnet20", "cifar10_exact")
    assert images.ids.tolist() == list(range(1017))
    assert images.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert images.images.shape == (1017, 3, 32, 32) and images.images.dtype == torch.uint8
    assert np.isclose(images.pixels().max(), 1)
