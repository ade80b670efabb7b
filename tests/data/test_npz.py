"""The data set `npz:PATH`: what is read, and what is refused."""

import zipfile

import numpy as np
import pytest
import torch

from bench.data.npz import Npz, NpzParams
from bench.data.order import interleaved
from bench.spec import canonical, parse, read_params
from tests.toys import message

IMAGES = np.arange(6 * 5 * 4, dtype=np.uint8).reshape(6, 5, 4)


LABELS = np.array([0, 1, 2, 0, 1, 2])


def npz(tmp_path, split="test", drawn_from="", **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return Npz(NpzParams(path=str(path), split=split, drawn_from=drawn_from))


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
    test = data.test()
    assert test.images.shape == (6, 1, 5, 4)
    assert (test.images[:, 0].numpy() == IMAGES).all()
    assert test.labels.tolist() == LABELS.tolist()
    assert test.labels.dtype == torch.int64
    assert test.ids.tolist() == list(range(6))
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


def test_npz_counts_classes_over_both_splits_and_at_least_two(tmp_path):
    several = npz(tmp_path, x_test=IMAGES, y_test=LABELS, x_train=IMAGES, y_train=LABELS + 4)
    assert several.num_classes == 7
    assert several.train().labels.tolist() == (LABELS + 4).tolist()
    assert npz(tmp_path, x=IMAGES, y=LABELS * 0).num_classes == 2


def test_npz_may_lack_some_of_its_classes(tmp_path):
    few = npz(tmp_path, x=IMAGES, y=LABELS)
    assert Npz(few.params.model_copy(update={"classes": 10})).num_classes == 10
    params = few.params.model_copy(update={"classes": 2})
    assert "has the label 2, but classes=2" in message(lambda: Npz(params).num_classes)


def test_npz_clips_what_lies_beyond_the_box_by_rounding(tmp_path):
    pixels = np.linspace(-1e-8, 1.0000002, 120).reshape(6, 5, 4).astype(np.float32)
    test = npz(tmp_path, x=pixels, y=LABELS).test()
    assert float(test.images.min()) == 0 and float(test.images.max()) == 1
    assert "by rounding" in test.notes[0]


def test_npz_mixes_labels_that_are_sorted(tmp_path):
    labels = np.repeat([0, 1, 2], 20)
    images = np.arange(60, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
    test = npz(tmp_path, x=images, y=labels).test()
    assert test.ids.tolist() == interleaved(labels).tolist()
    assert (test.images[:, 0, 0, 0].numpy() == test.ids).all()
    assert (labels[test.ids] == test.labels.numpy()).all()


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
        test = data.test()
        assert test.ids.tolist() == list(range(n))
        assert data.num_classes == classes
    cifar = Npz(NpzParams(path=str(real_data / "data" / "cifar10_exact.npz"))).test()
    assert cifar.images.shape == (1017, 3, 32, 32)
    assert cifar.labels[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]


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
    "one-hot labels": (IMAGES, np.eye(3, dtype=int)[LABELS], "not one-hot"),
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
    assert "a folder where a file is expected" in message(Npz(NpzParams(path=str(tmp_path))).test)
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
