"""What is known of each published data set, and the commands that use one.

The tests' own subclasses carry the sizes and checksums of small files.
"""

import numpy as np
import pytest
import torch

from bench.data.cifar import Cifar10, Cifar100
from bench.data.idx import FashionMnist, Mnist
from bench.data.medmnist import (
    BloodMnist,
    BreastMnist,
    DermaMnist,
    OrganCMnist,
    PathMnist,
    PneumoniaMnist,
    TissueMnist,
)
from bench.data.svhn import Svhn
from bench.models.zoo import names as shipped
from bench.noise import isolated
from bench.plugins.create import DATASETS
from bench.plugins.registry import Alias
from tests.data.helpers import random_images, small_breast
from tests.data.test_idx import LABELS, small_mnist
from tests.toys import message

MED = [BloodMnist, BreastMnist, DermaMnist, OrganCMnist, PathMnist, PneumoniaMnist, TissueMnist]


OFFICIAL = [Mnist, FashionMnist, Cifar10, Cifar100, Svhn, *MED]


@pytest.mark.parametrize("kind", OFFICIAL)
def test_every_official_set_says_what_it_is(kind, tmp_path):
    data = kind(kind.Params())
    assert DATASETS.get(kind.name) is kind
    assert (
        data.num_classes
        == len(set(kind.class_names))
        == {"cifar100": 100}.get(kind.name, data.num_classes)
    )
    assert data.drawn_from == (f"{kind.name}/test",)
    assert kind.licence and kind.source.startswith("http") and 0 < kind.default_eps < 1
    assert kind.default_classifier.removeprefix("zoo:") in ("", *shipped())
    text = message(data.test)
    assert "BENCH_OFFLINE is set" in text and str(tmp_path) in text and "http" in text


def test_only_medmnist_has_official_validation_images():
    for kind in (Mnist, Cifar100, Svhn):
        assert "no official validation images" in message(kind(kind.Params()).validation)
    for kind in MED:
        assert "cannot be downloaded" in message(kind(kind.Params()).validation)


def test_official_sizes_and_labels_are_checked(tmp_path):
    assert "where uint8 (10, 1, 28, 28) is expected" in message(
        small_mnist(tmp_path, images=random_images(9, 28, 28)).test
    )
    assert "where uint8 (10, 1, 28, 28) is expected" in message(
        small_mnist(tmp_path, images=random_images(10, 28, 27)).test
    )
    assert "labels (9,)" in message(small_mnist(tmp_path, labels=LABELS[:9]).test)
    assert "labels 1 to 10 where 0 to 9 is expected" in message(
        small_mnist(tmp_path, labels=LABELS + 1).test
    )


def test_run_gets_to_the_classifier(real_data, tmp_path, capsys):
    from bench.cli import execute

    arguments = [
        "run",
        "--dataset",
        "pneumoniamnist",
        "--defense",
        "undefended",
        "--attack",
        "null",
        "--out",
        str(tmp_path / "r"),
    ]
    where = ["--data-root", str(real_data / "data")]
    assert execute([*arguments, *where, "--classifier", "file:missing.safetensors"]) == 2
    assert "no such file: missing.safetensors" in capsys.readouterr().err
    assert execute([*arguments, "--classifier", "file:missing.safetensors"]) == 2, (
        "the data root of one command is not the next one's"
    )
    assert f"is not in {tmp_path}" in capsys.readouterr().err


def test_evaluate_takes_a_data_root(tmp_path):
    import bench

    (tmp_path / "other").mkdir()
    small_breast(tmp_path / "other")
    with isolated(0):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 2))
    text = message(
        lambda: bench.evaluate(
            model, dataset="breastmnist", attacks="null", data_root=tmp_path / "other"
        )
    )
    assert "no version known here" in text and str(tmp_path / "other") in text


def test_info_shows_what_a_data_set_is(capsys):
    from bench.cli import execute

    assert execute(["info", "dermamnist"]) == 0
    text = capsys.readouterr().out
    for line in (
        "image shape: 3 x 28 x 28",
        "splits: test 2005, train 7007, val 1003",
        "licence: CC BY-NC 4.0",
        "linf 8/255",
    ):
        assert line in text
    assert "classes: 7: actinic" in text and "source: https://zenodo.org/records/10519652" in text


def test_class_counts_add_up():
    """Their sum is the split's size, one number a class."""
    known = 0
    for name in DATASETS.names():
        kind = DATASETS.get(name)
        if isinstance(kind, Alias) or not kind.test_counts:
            continue
        known += 1
        assert sum(kind.test_counts) == kind.splits["test"], name
        assert not kind.class_names or len(kind.test_counts) == len(kind.class_names), name
    assert known >= 10


@pytest.mark.parametrize("name", ["mnist", "breastmnist", "pneumoniamnist"])
def test_class_counts_are_those_of_the_file(real_data, name):
    with np.load(real_data / "data" / f"{name}.npz", allow_pickle=False) as file:
        labels = file["y_test" if name == "mnist" else "test_labels"].reshape(-1)
    assert tuple(np.bincount(labels).tolist()) == DATASETS.get(name).test_counts
