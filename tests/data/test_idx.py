"""MNIST and Fashion-MNIST in IDX files."""

import gzip
import struct

import numpy as np
import pytest
import torch

from bench.data.idx import FashionMnist, Mnist
from bench.data.order import interleaved
from bench.errors import BadInput
from bench.spec import Params
from bench.storage.data_root import rooted
from tests.data.helpers import random_images, sha256
from tests.toys import message

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
    test = small_mnist(tmp_path, pack=pack).test()
    assert test.images.shape == (10, 1, 28, 28) and test.images.dtype == torch.uint8
    assert (test.images[:, 0].numpy() == random_images(10, 28, 28)).all()
    assert test.labels.tolist() == LABELS.tolist() and test.labels.dtype == torch.int64
    assert test.ids.tolist() == list(range(10))


def test_sorted_labels_take_turns(tmp_path):
    labels = np.repeat(np.array([3, 8], dtype=np.uint8), 5)
    test = small_mnist(tmp_path, labels=labels).test()
    assert test.ids.tolist() == interleaved(labels.astype(np.int64)).tolist()
    assert (labels[test.ids] == test.labels.numpy()).all()
    assert (random_images(10, 28, 28)[test.ids] == test.images[:, 0].numpy()).all()


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


def test_real_mnist_in_idx_files(real_data, tmp_path):
    with np.load(real_data / "data" / "mnist.npz", allow_pickle=False) as archive:
        (tmp_path / "mnist").mkdir()
        (tmp_path / "mnist" / "t10k-images-idx3-ubyte").write_bytes(idx(archive["x_test"]))
        (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(
            idx(archive["y_test"].astype(np.uint8))
        )
        expected = archive["x_test"]
    test = Mnist(Params()).test()
    assert (test.images[:, 0].numpy() == expected).all()
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]


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
