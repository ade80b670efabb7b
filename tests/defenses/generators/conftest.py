"""A small classifier, and a cache of its own."""

import pytest

from bench.contract.toys import CLASSES, SmallNet, gratings
from bench.models.classifier import Classifier


@pytest.fixture(scope="module")
def teacher():
    net = Classifier(SmallNet(gratings(96, first=1000)), CLASSES, mean=(0.5,) * 3, std=(0.1,) * 3)
    return net.eval().requires_grad_(False)
