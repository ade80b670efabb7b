"""A small classifier, and a cache of its own."""

import pytest

from bench.contract.toys import SmallNet, gratings
from bench.models.classifier import Classifier


@pytest.fixture(scope="module")
def net():
    classifier = Classifier(
        SmallNet(gratings(60)), 3, mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.1)
    ).eval()
    return classifier.requires_grad_(False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
