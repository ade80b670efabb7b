"""MedMNIST and its releases."""

import numpy as np
import pytest

from bench.data.medmnist import (
    BloodMnist,
    BreastMnist,
    DermaMnist,
    OrganCMnist,
    PathMnist,
    PneumoniaMnist,
    TissueMnist,
)
from bench.noise import isolated
from bench.plugins.create import DATASETS, create
from bench.spec import Params, parse
from bench.storage.data_root import rooted
from tests.data.helpers import md5, random_images, small_breast
from tests.toys import message

MED = [BloodMnist, BreastMnist, DermaMnist, OrganCMnist, PathMnist, PneumoniaMnist, TissueMnist]


def test_medmnist_splits(tmp_path):
    val = random_images(4, 28, 28) // 2
    data = small_breast(tmp_path, val_images=val)
    assert (data.validation().images[:, 0].numpy() == val).all()
    assert (data.test().images[:, 0].numpy() == random_images(4, 28, 28)).all()
    assert data.train().labels.tolist() == [0, 1, 1, 0]
    assert data.test() is data.test(), "a split is read once"


MED_CHANGES = {
    "pickled images": ({"test_images": np.array([{}] * 4, dtype=object)}, "never unpickled"),
    "pickled labels": ({"test_labels": np.array([{}] * 4, dtype=object)}, "never unpickled"),
    "64 pixels": (
        {"test_images": random_images(4, 64, 64)},
        "where uint8 (4, 1, 28, 28) is expected",
    ),
    "colour": (
        {"test_images": random_images(4, 28, 28, 3)},
        "where uint8 (4, 1, 28, 28) is expected",
    ),
    "floats": ({"test_images": random_images(4, 28, 28) / 255}, "where uint8"),
    "label": (
        {"test_labels": np.array([[0], [1], [2], [0]])},
        "labels 0 to 2 where 0 to 1 is expected",
    ),
    "count": ({"test_labels": np.array([[0], [1], [1]])}, "labels (3,)"),
    "no split": ({"test_images": None}, "has no test images"),
}


@pytest.mark.parametrize("case", MED_CHANGES)
def test_medmnist_refuses_bad_arrays(tmp_path, case):
    changes, expected = MED_CHANGES[case]
    assert expected in message(small_breast(tmp_path, **changes).test)


def test_medmnist_recognises_versions(tmp_path):
    data = small_breast(tmp_path)
    whole = (tmp_path / "breastmnist.npz").read_bytes()
    (tmp_path / "breastmnist.npz").write_bytes(whole[:-1])
    text = message(data.test)
    assert "no version known here" in text and data.md5 in text and md5(whole[:-1]) in text

    class Other(type(data)):
        others = {md5(whole[:-1]): "a preview"}

    assert "it is a preview" in message(Other(Params()).test)
    (tmp_path / "breastmnist.npz").write_bytes(b"text")
    type(data).md5 = md5(b"text")
    assert "not a complete .npz" in message(data.test)


def test_organcmnist_releases(tmp_path):
    new, old = (
        create(DATASETS, parse(f"organcmnist{text}")).plugin for text in ("", ":release=2021")
    )
    assert new.size("test") == 8216 and old.size("test") == 8268 and old.size("train") == 13000
    assert str(tmp_path / "organcmnist.npz") in message(new.test) and "records/10519652" in message(
        new.test
    )
    assert str(tmp_path / "organcmnist-2021.npz") in message(
        old.test
    ) and "b9ceb9546e" not in message(old.test)

    class Switched(OrganCMnist):
        others = {md5(b"old"): OrganCMnist.others[OrganCMnist.md5_2021]}

    (tmp_path / "organcmnist.npz").write_bytes(b"old")
    assert "release=2021" in message(Switched(OrganCMnist.Params()).test)


@pytest.fixture
def medmnist():
    with isolated(0):
        return pytest.importorskip(
            "medmnist", reason="pip install --no-deps medmnist, and what it imports"
        )


@pytest.mark.parametrize("kind", MED)
def test_medmnist_facts_are_those_of_the_package(medmnist, kind):
    info = medmnist.INFO[kind.name]
    assert (
        kind.md5 == info["MD5"]
        and kind.splits == info["n_samples"]
        and len(kind.class_names) == len(info["label"])
    )
    assert kind.licence == info["license"] and kind.image_shape == (info["n_channels"], 28, 28)
    file, record, _ = kind(kind.Params()).published()
    assert info["url"] == f"https://zenodo.org/records/{record}/files/{file}?download=1"


def test_medmnist_parity_with_the_package(real_data, medmnist):
    with rooted(real_data / "data"):
        data = PneumoniaMnist(Params())
        for split, ours in (
            ("train", data.train()),
            ("val", data.validation()),
            ("test", data.test()),
        ):
            theirs = medmnist.PneumoniaMNIST(
                split=split, root=str(real_data / "data"), download=False
            )
            assert (theirs.imgs[ours.ids] == ours.images[:, 0].numpy()).all()
            assert (theirs.labels[ours.ids, 0] == ours.labels.numpy()).all()
            assert sorted(ours.ids) == list(range(len(theirs)))
        assert data.test().ids.tolist() == list(range(624))
