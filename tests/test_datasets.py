"""Published data sets and picture folders: known answers on small files in the official formats,
and what is refused.

The tests' own subclasses carry the sizes and checksums of the small files.
"""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest
import torch
from scipy.io import savemat

from bench.data.cifar import Cifar10, Cifar100
from bench.data.idx import FashionMnist, Mnist
from bench.data.imagefolder import ImageFolder
from bench.data.imagenet import ImageNet, _lines, robustbench_list
from bench.data.medmnist import (
    BloodMnist,
    BreastMnist,
    DermaMnist,
    OrganCMnist,
    PathMnist,
    PneumoniaMnist,
    TissueMnist,
)
from bench.data.order import evaluation_order, interleaved
from bench.data.pictures import View
from bench.data.svhn import Svhn
from bench.errors import BadInput
from bench.models.training import score
from bench.models.zoo import Zoo, ZooParams
from bench.models.zoo import names as shipped
from bench.noise import isolated
from bench.plugins.create import DATASETS, create
from bench.spec import Params, parse
from bench.storage.download import rooted
from tests.toys import message

MED = [BloodMnist, BreastMnist, DermaMnist, OrganCMnist, PathMnist, PneumoniaMnist, TissueMnist]
OFFICIAL = [Mnist, FashionMnist, Cifar10, Cifar100, Svhn, *MED]


@pytest.fixture(autouse=True)
def offline_root(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path))
    return tmp_path


def random_images(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# What is known of each ----------------------------------------------------------------------------


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


# IDX ----------------------------------------------------------------------------------------------

LABELS = np.array([7, 2, 1, 0, 4, 1, 4, 9, 5, 9], dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def small_mnist(
    root, images=None, labels=LABELS, change=lambda file, content: content, pack=False
) -> Mnist:
    images = random_images(10, 28, 28) if images is None else images
    files = {"t10k-images-idx3-ubyte": idx(images), "t10k-labels-idx1-ubyte": idx(labels)}
    files = {file: change(file, content) for file, content in files.items()}
    (root / "mnist").mkdir(exist_ok=True)
    for file, content in files.items():
        (root / "mnist" / f"{file}{'.gz' * pack}").write_bytes(
            gzip.compress(content) if pack else content
        )

    class Small(Mnist):
        splits = {"test": 10, "train": 10}
        content = {file: sha256(data) for file, data in files.items()}

    return Small(Params())


@pytest.mark.parametrize("pack", [False, True])
def test_idx_known_answer(tmp_path, pack):
    found = small_mnist(tmp_path, pack=pack).test()
    assert found.images.shape == (10, 1, 28, 28) and found.images.dtype == torch.uint8
    assert (found.images[:, 0].numpy() == random_images(10, 28, 28)).all()
    assert found.labels.tolist() == LABELS.tolist() and found.labels.dtype == torch.int64
    assert found.ids.tolist() == list(range(10))


def test_sorted_labels_take_turns(tmp_path):
    labels = np.repeat(np.array([3, 8], dtype=np.uint8), 5)
    found = small_mnist(tmp_path, labels=labels).test()
    assert found.ids.tolist() == interleaved(labels.astype(np.int64)).tolist()
    assert (labels[found.ids] == found.labels.numpy()).all()
    assert (random_images(10, 28, 28)[found.ids] == found.images[:, 0].numpy()).all()


IDX_CHANGES = {
    "truncated": (lambda c: c[:-1], "header announces"),
    "longer": (lambda c: c + b"0", "header announces"),
    "header only": (lambda c: c[:6], "no IDX file"),
    "other type": (lambda c: b"\x00\x00\x0d" + c[3:], "no IDX file"),
    "other axes": (lambda c: c[:3] + b"\x02" + c[4:], "no IDX file"),
    "empty": (lambda c: b"", "no IDX file"),
}


@pytest.mark.parametrize("case", IDX_CHANGES)
@pytest.mark.parametrize("which", ["images", "labels"])
def test_idx_refuses_broken_files(tmp_path, case, which):
    change, expected = IDX_CHANGES[case]
    data = small_mnist(
        tmp_path, change=lambda file, content: change(content) if which in file else content
    )
    assert expected in message(data.test)


def test_idx_refuses_other_content(tmp_path):
    data = small_mnist(tmp_path, pack=True)
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert "is damaged" in message(data.test)
    path.write_bytes(gzip.compress(idx(random_images(10, 28, 28) + 1)))
    text = message(data.test)
    assert "SHA-256" in text and data.content["t10k-images-idx3-ubyte"] in text
    path.write_bytes(whole)
    assert len(data.test()) == 10


def test_official_sizes_and_labels_are_checked(tmp_path):
    assert "where uint8 (10, 1, 28, 28) is due" in message(
        small_mnist(tmp_path, images=random_images(9, 28, 28)).test
    )
    assert "where uint8 (10, 1, 28, 28) is due" in message(
        small_mnist(tmp_path, images=random_images(10, 28, 27)).test
    )
    assert "labels (9,)" in message(small_mnist(tmp_path, labels=LABELS[:9]).test)
    assert "labels 1 to 10 where 0 to 9 is due" in message(
        small_mnist(tmp_path, labels=LABELS + 1).test
    )


def test_real_mnist_in_idx_files(real_data, tmp_path):
    with np.load(real_data / "data" / "mnist.npz", allow_pickle=False) as archive:
        (tmp_path / "mnist").mkdir()
        (tmp_path / "mnist" / "t10k-images-idx3-ubyte").write_bytes(idx(archive["x_test"]))
        (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(
            idx(archive["y_test"].astype(np.uint8))
        )
        expected = archive["x_test"]
    found = Mnist(Params()).test()
    assert (found.images[:, 0].numpy() == expected).all()
    assert found.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_real_fashion_mnist():
    with rooted("/usr/share/datasets"):
        data = FashionMnist(Params())
        try:
            test = data.test()
        except BadInput as error:
            pytest.skip(f"apt-get install dataset-fashion-mnist: {error}")
        assert torch.bincount(test.labels).tolist() == [1000] * 10
        assert test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
        assert test.sha256 == "9ad308915b01d034979dd01a46a78d5f028c8eed6b25b4356b05d17bca499f6d"
        assert (
            data.train().sha256
            == "dd65d430688a877c7dcfa925d70f862d6c593aa3ff8744bc0bc436595b43f9c2"
        )


# CIFAR --------------------------------------------------------------------------------------------


def tar(path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def small_cifar(root, kind, unpacked: bool, change=lambda content: content):
    """Images and labels, and the data set of two training files of three images and a test file of
    two.
    """
    width = 2 if kind is Cifar100 else 1
    images = random_images(8, 3, 32, 32)
    labels = (np.arange(8)[:, None] + [[90, 60] if width == 2 else [0]]).astype(np.uint8)
    records = np.concatenate([labels, images.reshape(8, -1)], axis=1)
    files = {"test": {"t.bin": records[:2]}, "train": {"a.bin": records[2:5], "b.bin": records[5:]}}
    contents = {
        split: {name: change(rows.tobytes()) for name, rows in parts.items()}
        for split, parts in files.items()
    }
    flat = {
        f"folder/{name}": content for parts in contents.values() for name, content in parts.items()
    }
    tar(root / "small.tar.gz", flat)

    class Small(kind):
        splits = {"test": 2, "train": 6}
        archive, folder = "small.tar.gz", "folder"
        checksum = f"md5:{md5((root / 'small.tar.gz').read_bytes())}"
        files = {
            split: {name: sha256(content) for name, content in parts.items()}
            for split, parts in contents.items()
        }

    if unpacked:
        (root / "small.tar.gz").unlink()
        (root / "folder").mkdir()
        for name, content in flat.items():
            (root / name).write_bytes(content)
    return images, labels[:, -1], Small(Params())


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_cifar_known_answer(tmp_path, kind, unpacked):
    images, labels, data = small_cifar(tmp_path, kind, unpacked)
    assert (
        data.test().images.numpy() == images[:2]
    ).all() and data.test().labels.tolist() == labels[:2].tolist()
    assert (
        data.train().images.numpy() == images[2:]
    ).all() and data.train().labels.tolist() == labels[2:].tolist()
    assert labels[0] == (60 if kind is Cifar100 else 0), "the fine label is the second"
    assert data.train().ids.tolist() == list(range(6))


@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar_refuses_broken_files(tmp_path, unpacked):
    (tmp_path / "short").mkdir()
    (tmp_path / "wide").mkdir()
    with rooted(tmp_path / "short"):
        assert "not whole records of 3073" in message(
            small_cifar(tmp_path / "short", Cifar10, unpacked, lambda c: c[:-1])[2].test
        )
    with rooted(tmp_path / "wide"):
        label = small_cifar(tmp_path / "wide", Cifar10, unpacked, lambda c: b"\x0a" + c[1:])[2]
        assert "labels 1 to 10 where 0 to 9 is due" in message(label.test)


def test_cifar_refuses_other_content(tmp_path):
    _, _, data = small_cifar(tmp_path, Cifar10, unpacked=False)
    path = tmp_path / "small.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert data.checksum in message(data.test)
    for content in (whole[: len(whole) // 2], b"text"):
        path.write_bytes(content)
        type(data).checksum = f"md5:{md5(content)}"
        assert "is damaged" in message(data.train)
    tar(path, {"elsewhere/t.bin": b""})
    type(data).checksum = f"md5:{md5(path.read_bytes())}"
    assert "t.bin" in message(data.test)


def test_cifar_reads_the_archive_where_an_unpacked_file_is_missing(tmp_path):
    images, _, data = small_cifar(tmp_path, Cifar10, unpacked=False)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.bin").write_bytes(b"other")
    assert (data.train().images.numpy() == images[2:]).all()


def test_cifar_verifies_unpacked_files(tmp_path):
    _, _, data = small_cifar(tmp_path, Cifar10, unpacked=True)
    path = tmp_path / "folder" / "t.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert data.files["test"]["t.bin"] in message(data.test)


def test_cifar_real_records(real_data, tmp_path):
    """The exact images of the real test set, packed as the official file has them, come back in
    order.
    """
    with np.load(real_data / "data" / "cifar10_exact.npz", allow_pickle=False) as archive:
        images, labels = archive["x_test"], archive["y_test"].astype(np.uint8)
    content = np.concatenate(
        [labels[:, None], images.transpose(0, 3, 1, 2).reshape(len(labels), -1)], axis=1
    ).tobytes()

    class Some(Cifar10):
        splits = {"test": len(labels)}
        files = {"test": {"test_batch.bin": sha256(content)}}

    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(content)
    found = Some(Params()).test()
    assert (found.images.numpy().transpose(0, 2, 3, 1) == images).all()
    assert found.labels[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]


# SVHN ---------------------------------------------------------------------------------------------


def small_svhn(root, images, labels, change=lambda content: content) -> Svhn:
    (root / "svhn").mkdir(exist_ok=True)
    path = root / "svhn" / "test_32x32.mat"
    savemat(path, {"X": images, "y": labels}, do_compression=True)
    path.write_bytes(change(path.read_bytes()))

    class Small(Svhn):
        splits = {"test": 6}
        checksums = {"test": f"md5:{md5(path.read_bytes())}"}

    return Small(Params())


DIGITS = np.array([[5], [10], [1], [10], [9], [2]], dtype=np.uint8)


def test_svhn_known_answer(tmp_path):
    images = random_images(6, 3, 32, 32)
    found = small_svhn(tmp_path, images.transpose(2, 3, 1, 0), DIGITS).test()
    assert (found.images.numpy() == images).all()
    assert found.labels.tolist() == [5, 0, 1, 0, 9, 2]
    assert Svhn(Params()).drawn_from == ("svhn/test",)


def test_svhn_refuses_broken_files(tmp_path):
    stored = random_images(6, 3, 32, 32).transpose(2, 3, 1, 0)
    assert "is damaged" in message(
        small_svhn(tmp_path, stored, DIGITS, lambda c: c[: len(c) // 2]).test
    )
    assert "is damaged" in message(
        small_svhn(tmp_path, stored, DIGITS, lambda c: b"text" * 99).test
    )
    assert "not (32, 32, 3, n)" in message(small_svhn(tmp_path, stored[0], DIGITS).test)
    assert "not (32, 32, 3, n)" in message(small_svhn(tmp_path, stored, DIGITS + 0.5).test)
    assert "is due" in message(small_svhn(tmp_path, stored.transpose(3, 0, 1, 2), DIGITS).test)
    assert "labels 0 to 11" in message(small_svhn(tmp_path, stored, DIGITS + 1).test)
    data = small_svhn(tmp_path, stored, DIGITS)
    with (tmp_path / "svhn" / "test_32x32.mat").open("ab") as file:
        file.write(b"x")
    assert data.checksums["test"] in message(data.test)


# MedMNIST -----------------------------------------------------------------------------------------


def small_breast(root, name="breastmnist", **changes) -> BreastMnist:
    arrays = {
        f"{s}_{kind}": random_images(4, 28, 28)
        if kind == "images"
        else np.array([[0], [1], [1], [0]], np.uint8)
        for s in ("train", "val", "test")
        for kind in ("images", "labels")
    }
    arrays.update(changes)
    path = root / f"{name}.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})

    class Small(BreastMnist):
        splits = {"test": 4, "train": 4, "val": 4}
        md5 = hashlib.md5(path.read_bytes()).hexdigest()

    return Small(Params())


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
    "64 pixels": ({"test_images": random_images(4, 64, 64)}, "where uint8 (4, 1, 28, 28) is due"),
    "colour": ({"test_images": random_images(4, 28, 28, 3)}, "where uint8 (4, 1, 28, 28) is due"),
    "floats": ({"test_images": random_images(4, 28, 28) / 255}, "where uint8"),
    "label": ({"test_labels": np.array([[0], [1], [2], [0]])}, "labels 0 to 2 where 0 to 1 is due"),
    "count": ({"test_labels": np.array([[0], [1], [1]])}, "labels (3,)"),
    "no split": ({"test_images": None}, "has no test images"),
}


@pytest.mark.parametrize("case", MED_CHANGES)
def test_medmnist_refuses_bad_arrays(tmp_path, case):
    changes, expected = MED_CHANGES[case]
    assert expected in message(small_breast(tmp_path, **changes).test)


def test_medmnist_tells_versions_apart(tmp_path):
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
        for split, found in (
            ("train", data.train()),
            ("val", data.validation()),
            ("test", data.test()),
        ):
            theirs = medmnist.PneumoniaMNIST(
                split=split, root=str(real_data / "data"), download=False
            )
            assert (theirs.imgs[found.ids] == found.images[:, 0].numpy()).all()
            assert (theirs.labels[found.ids, 0] == found.labels.numpy()).all()
            assert sorted(found.ids) == list(range(len(theirs)))
        assert data.test().ids.tolist() == list(range(624))


# Picture folders ----------------------------------------------------------------------------------


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image", reason="pip install pillow")


def folder_of(root, pillow, names: dict[str, np.ndarray]):
    for name, pixels in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pillow.fromarray(pixels).save(root / name)


def image_folder(root, **params) -> ImageFolder:
    return ImageFolder(ImageFolder.Params(path=str(root), **params))


def test_imagefolder_known_answer(tmp_path, pillow):
    pixels = random_images(6, 5, 4, 3)
    names = [
        f"{split}{name}/{i}.png"
        for split in ("test/", "train/")
        for name, i in (("b", 0), ("a", 2), ("a", 1))
    ]
    folder_of(tmp_path, pillow, dict(zip(names, pixels, strict=True)))
    (tmp_path / "test" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "test" / ".hidden").mkdir()
    data = image_folder(tmp_path, drawn_from="mine/test")
    found = data.test()
    labels = np.array([0, 0, 1])
    assert data.num_classes == 2 and data.drawn_from == ("mine/test",)
    assert found.ids.tolist() == evaluation_order(labels).tolist()
    assert found.labels.tolist() == labels[found.ids].tolist()
    assert (found.images.numpy().transpose(0, 2, 3, 1) == pixels[[2, 1, 0]][found.ids]).all()
    assert len(data.train()) == 3
    assert "has no val pictures" in message(data.validation)
    assert image_folder(tmp_path, grey=True).test().images.shape == (3, 1, 5, 4)
    assert image_folder(tmp_path, size=8).test().images.shape == (3, 3, 8, 8)


def test_imagefolder_lets_the_classes_take_turns(tmp_path, pillow):
    pixels = np.arange(24, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
    folder_of(
        tmp_path,
        pillow,
        {f"{name}/{i}.png": pixels[4 * k + i] for k, name in enumerate("ABCxyz") for i in range(4)},
    )
    everything = image_folder(tmp_path, grey=True).test()
    order = interleaved(np.repeat(np.arange(6), 4))
    assert everything.ids.tolist() == order.tolist()
    for found in (everything, everything.at(np.array([7, 2, 11]))):
        assert found.images[:, 0, 0, 0].tolist() == found.ids.tolist()
        assert found.labels.tolist() == (found.ids // 4).tolist()


def test_imagefolder_without_splits(tmp_path, pillow):
    folder_of(
        tmp_path,
        pillow,
        {"x/1.png": random_images(1, 4, 4)[0], "y/1.png": random_images(2, 4, 4)[1]},
    )
    data = image_folder(tmp_path, grey=True)
    assert len(data.test()) == 2
    assert "has no train pictures" in message(data.train)


def test_pictures_are_decoded_only_when_asked_for(tmp_path, pillow):
    folder_of(
        tmp_path,
        pillow,
        {f"{c}/{i}.png": random_images(1, 4, 4, 3)[0] for c in "ab" for i in range(3)},
    )
    everything = image_folder(tmp_path).test()
    last = everything._files[-1]
    last.write_bytes(last.read_bytes()[:40])
    assert len(everything) == 6
    assert everything.first(5).images.shape == (5, 3, 4, 4)
    assert str(last) in message(lambda: everything.images) and "cannot be decoded" in message(
        lambda: everything.sha256
    )
    last.write_bytes(b"text")
    assert "cannot be decoded" in message(lambda: everything.first(6))


def test_a_blank_line_among_labels_is_refused(tmp_path):
    """Synsets alone belong to pictures by their line."""
    file = tmp_path / "labels.txt"
    file.write_text("n01\n\nn02\n")
    assert "blank line 2" in message(lambda: _lines(str(file), "labels"))
    file.write_text("n01\nn02\n\n")
    assert _lines(str(file), "labels") == ["n01", "n02"]
    file.write_text("\n \n")
    assert "is empty" in message(lambda: _lines(str(file), "labels"))


def test_imagefolder_refuses(tmp_path, pillow, monkeypatch):
    assert "cannot list the folder" in message(image_folder(tmp_path / "none").test)
    assert "has no pictures in class folders" in message(image_folder(tmp_path).test)
    folder_of(
        tmp_path,
        pillow,
        {"a/1.png": random_images(1, 4, 4)[0], "b/1.png": random_images(1, 5, 4)[0]},
    )
    assert "size=N" in message(lambda: image_folder(tmp_path).test().first(2))


def test_pictures_of_more_than_8_bits_are_refused(tmp_path, pillow):
    deep = np.linspace(0, 65535, 16).reshape(4, 4)
    for name, pixels in {
        "16.png": deep.astype(np.uint16),
        "32.tif": deep.astype(np.int32),
        "f.tif": deep.astype(np.float32),
    }.items():
        pillow.fromarray(pixels).save(tmp_path / name)
        assert "more than 8 bits" in message(lambda name=name: View(True)(tmp_path / name))


class Three(ImageNet):
    synsets = 3


SYNSETS = ["n01440764", "n02823750", "n09472597"]


def imagenet(root, **params) -> Three:
    return Three(ImageNet.Params(path=str(root), **params))


def photos(root, pillow, flat: bool) -> np.ndarray:
    """Six small photos, the i-th of class i % 3."""
    pixels = random_images(6, 300, 280, 3)
    names = [
        f"{'' if flat else SYNSETS[i % 3] + '/'}ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(6)
    ]
    folder_of(root / "val", pillow, dict(zip(names, pixels, strict=True)))
    return pixels


LABEL_FILES = {
    "synsets in order": [SYNSETS[i % 3] for i in range(6)],
    "names and classes": [f"ILSVRC2012_val_{i + 1:08d}.JPEG {i % 3}" for i in reversed(range(6))],
    "Kaggle": [
        f"ILSVRC2012_val_{i + 1:08d},{SYNSETS[i % 3]} 85 1 499 272" for i in reversed(range(6))
    ],
}


def test_imagenet_layouts_agree(tmp_path, pillow):
    photos(tmp_path / "folders", pillow, flat=False)
    photos(tmp_path / "flat", pillow, flat=True)
    expected = imagenet(tmp_path / "folders" / "val").test()
    assert expected.ids.tolist() == list(range(6)) and expected.labels.tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
    ]
    assert expected.first(1).images.shape == (1, 3, 224, 224)
    for lines in LABEL_FILES.values():
        (tmp_path / "labels.txt").write_text("\n".join(lines))
        found = imagenet(tmp_path / "flat" / "val", labels=str(tmp_path / "labels.txt")).test()
        assert found.sha256 == expected.sha256


def test_imagenet_list(tmp_path, pillow):
    photos(tmp_path, pillow, flat=False)
    (tmp_path / "list.txt").write_text(
        "x/ILSVRC2012_val_00000003.JPEG\nx/ILSVRC2012_val_00000001.JPEG\n"
    )
    found = imagenet(tmp_path / "val", list=str(tmp_path / "list.txt")).test()
    assert found.ids.tolist() == [2, 0] and found.labels.tolist() == [2, 0]
    for text, expected in (
        ("ILSVRC2012_val_00000009.JPEG", "lacks ILSVRC2012_val_00000009.JPEG"),
        ("ILSVRC2012_val_00000001.JPEG\n" * 2, "does not name another"),
        ("cat.jpg", "does not name another"),
        ("\n", "is empty"),
    ):
        (tmp_path / "list.txt").write_text(text)
        assert expected in message(imagenet(tmp_path / "val", list=str(tmp_path / "list.txt")).test)


def test_imagenet_robustbench_list(tmp_path, pillow):
    try:
        assert len(set(robustbench_list().read_text().split())) == 5000
    except BadInput as error:
        pytest.skip(str(error))
    photos(tmp_path, pillow, flat=False)
    assert "lacks ILSVRC2012_val_00015253" in message(
        imagenet(tmp_path / "val", list="robustbench").test
    )


def test_imagenet_refuses(tmp_path, pillow):
    photos(tmp_path / "flat", pillow, flat=True)
    flat, labels = tmp_path / "flat" / "val", tmp_path / "labels.txt"
    assert "add labels=FILE" in message(imagenet(flat).test)
    for lines, expected in (
        (["1", "2", "3"] * 2, "neither a synset nor"),
        (
            [f"ILSVRC2012_val_{i + 1:08d}.JPEG {i % 3 + 1}" for i in range(6)],
            "3 classes up to 3 where 3 from 0 are due",
        ),
        ([SYNSETS[i % 2] for i in range(6)], "2 classes"),
        (SYNSETS, "has no label of ILSVRC2012_val_00000004.JPEG"),
    ):
        labels.write_text("\n".join(lines))
        assert expected in message(imagenet(flat, labels=str(labels)).test)
    labels.write_bytes(b"\xff\xfe\x00")
    assert "no text file" in message(imagenet(flat, labels=str(labels)).test)
    (tmp_path / "empty").mkdir()
    labels.write_text("\n".join(LABEL_FILES["synsets in order"]))
    assert "lacks any" in message(imagenet(tmp_path / "empty", labels=str(labels)).test)
    folder_of(
        tmp_path / "two",
        pillow,
        {f"{name}/x.png": random_images(1, 4, 4)[0] for name in SYNSETS[:2]},
    )
    assert "2 folders where 3 synsets are due" in message(imagenet(tmp_path / "two").test)
    folder_of(tmp_path / "two", pillow, {f"{SYNSETS[2]}/x.png": random_images(1, 4, 4)[0]})
    assert "use imagefolder:PATH" in message(imagenet(tmp_path / "two").test)
    assert "use imagefolder:PATH" in message(imagenet(flat).train)
    assert "is smaller than size=300" in message(
        lambda: create(DATASETS, parse(f"imagenet:{flat},size=300"))
    )


@pytest.mark.parametrize(
    "size", [(300, 280), (280, 301), (256, 256), (225, 700), (100, 57), (270, 355)]
)
def test_imagenet_view_is_torchvisions(tmp_path, pillow, size):
    transforms = pytest.importorskip("torchvision.transforms", reason="pip install torchvision")

    pixels = random_images(1, *size, 3)[0]
    folder_of(tmp_path, pillow, {"x.png": pixels})
    theirs = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
    )
    assert (View(False, 256, 224)(tmp_path / "x.png") == theirs(pillow.fromarray(pixels))).all()


# The command --------------------------------------------------------------------------------------


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


def test_the_shipped_pneumonia_classifier_is_as_good_as_its_sidecar_says(real_data):
    """86.5 %, where the constant answer gets 62.5."""
    with rooted(real_data / "data"):
        data = PneumoniaMnist(PneumoniaMnist.Params())
        found = score(Zoo(ZooParams(name="pneumoniamnist-cnn")).load(2, 1), data.test())
        assert found.n == 624 and found.accuracy == pytest.approx(0.8654, abs=1e-4)
        assert found.macro_f1 == pytest.approx(0.8434, abs=1e-4)
        assert (data.test().labels == 1).float().mean() == 0.625
