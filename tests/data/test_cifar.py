"""CIFAR-10 and CIFAR-100 in their binary distributions."""

import io
import tarfile

import numpy as np
import pytest

from bench.data.cifar import Cifar10, Cifar100
from bench.spec import Params
from bench.storage.data_root import rooted
from tests.data.helpers import md5, random_images, sha256
from tests.toys import message


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
        assert "labels 1 to 10 where 0 to 9 is expected" in message(label.test)


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
    test = Some(Params()).test()
    assert (test.images.numpy().transpose(0, 2, 3, 1) == images).all()
    assert test.labels[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]
