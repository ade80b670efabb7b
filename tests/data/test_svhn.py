"""SVHN in MATLAB files."""

import numpy as np
from scipy.io import savemat

from bench.data.svhn import Svhn
from bench.spec import Params
from tests.data.helpers import md5, random_images
from tests.toys import message


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
    test = small_svhn(tmp_path, images.transpose(2, 3, 1, 0), DIGITS).test()
    assert (test.images.numpy() == images).all()
    assert test.labels.tolist() == [5, 0, 1, 0, 9, 2]
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
    assert "is expected" in message(small_svhn(tmp_path, stored.transpose(3, 0, 1, 2), DIGITS).test)
    assert "labels 0 to 11" in message(small_svhn(tmp_path, stored, DIGITS + 1).test)
    data = small_svhn(tmp_path, stored, DIGITS)
    with (tmp_path / "svhn" / "test_32x32.mat").open("ab") as file:
        file.write(b"x")
    assert data.checksums["test"] in message(data.test)
