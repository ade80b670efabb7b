"""Controls: networks as they are, undefended, certified and trained adversarially."""

from __future__ import annotations

from bench.studies.cases import MNIST5K, Case, Place

_CIFAR, _MNIST = "npz:data/cifar10_exact.npz", "npz:data/mnist.npz"


def _published(kind: str, name: str, dataset: str, eps: float, n: int) -> Case:
    place = Place(dataset, f"file:models/{name}.safetensors", eps, n)
    return Case(name.replace("_", "-"), kind, "a published network", False, place=place)


CASES = (
    Case("zoo-cnn", "undefended", "the suite's own network", False, place=MNIST5K),
    Case(
        "zoo-flat",
        "undefended",
        "the suite's other network",
        False,
        place=Place("mnist5k", "zoo:mnist5k-flat", 0.1, 64),
    ),
    Case(
        "zoo-cnn-small-eps",
        "undefended",
        "the suite's own network in a small ball",
        False,
        place=Place("mnist5k", "zoo:mnist5k-cnn", 0.03, 64),
    ),
    Case(
        "zoo-cnn-large-eps",
        "undefended",
        "the suite's own network in a large ball",
        False,
        place=Place("mnist5k", "zoo:mnist5k-cnn", 0.3, 64),
    ),
    _published("undefended", "cifar_resnet20", _CIFAR, 8 / 255, 32),
    _published("undefended", "cifar_sgd_8px", _CIFAR, 2 / 255, 32),
    _published("certified", "mnist_kw_0.1", _MNIST, 0.1, 64),
    _published("certified", "mnist_kw_small_0.3", _MNIST, 0.3, 64),
    _published("certified", "cifar_kw_wide", _CIFAR, 2 / 255, 32),
    _published("certified", "cifar_kw_base", _CIFAR, 2 / 255, 32),
    _published("adversarially-trained", "mnist_cnn_a_adv", _MNIST, 0.3, 64),
    _published("adversarially-trained", "mnist_wk17a", _MNIST, 0.1, 64),
    _published("adversarially-trained", "cifar_cnn_a_adv", _CIFAR, 2 / 255, 32),
)
