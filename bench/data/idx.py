"""`mnist` and `fashion-mnist`: the official IDX files, packed or not."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bench.data.official import Bytes, Official
from bench.data.order import Integers
from bench.errors import BadInput, one_line
from bench.spec import Params
from bench.storage.data_root import data_root
from bench.storage.download import fetch

_UNSIGNED_BYTES = b"\x00\x00\x08"
_PREFIXES = {"test": "t10k", "train": "train"}


class Idx(Official[Params]):
    """A data set of four IDX files in the folder `name` below the data root, each plain or as .gz.

    Only the content is checked: a file that somebody packed again is accepted.

    Attributes:
        mirrors: addresses of folders that have the .gz files.
        packed: the published checksum of each .gz, for downloads.
        content: SHA-256 of each unpacked file.
    """

    image_shape: ClassVar[tuple[int, int, int] | None] = (1, 28, 28)
    splits: ClassVar[dict[str, int]] = {"test": 10_000, "train": 60_000}
    mirrors: ClassVar[tuple[str, ...]]
    packed: ClassVar[dict[str, str]]
    content: ClassVar[dict[str, str]]

    def read(self, split: str) -> tuple[Bytes, Integers]:
        prefix = _PREFIXES[split]
        images = self._array(f"{prefix}-images-idx3-ubyte", 3)
        return images[:, None], self._array(f"{prefix}-labels-idx1-ubyte", 1).astype(np.int64)

    def _array(self, file: str, axes: int) -> npt.NDArray[Any]:
        path = data_root() / self.name / file
        if not path.exists():
            path = path.with_name(f"{file}.gz")
        if not path.exists():
            fetch(
                f"{self.name}/{path.name}",
                [f"{mirror}/{path.name}" for mirror in self.mirrors],
                self.packed[file],
            )
        content = _content(path)
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.content[file]:
            raise BadInput(
                f"{path} holds SHA-256 {digest}, not {self.content[file]}: it is another file; "
                "remove or replace it"
            )
        return parse(content, axes, str(path))


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(
            f"{path} cannot be read ({one_line(error)}): it is damaged; remove it to download it "
            "again"
        ) from error


def parse(content: bytes, axes: int, what: str) -> Bytes:
    """The array in an IDX file of unsigned bytes: its type, its number of axes, their big-endian
    lengths, the bytes.
    """
    start = 4 + 4 * axes
    if content[:4] != _UNSIGNED_BYTES + bytes([axes]) or len(content) < start:
        raise BadInput(
            f"{what} is no IDX file of unsigned bytes with {axes} axes: get the published file"
        )
    shape = tuple(map(int, np.frombuffer(content, ">u4", axes, 4)))
    length = start + int(np.prod(shape, dtype=np.float64))
    if len(content) != length:
        raise BadInput(
            f"{what} has {len(content)} bytes where its header announces {length}: get the "
            "published file"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


class Mnist(Idx):
    """MNIST: handwritten digits, 60,000 training and 10,000 test images, 28 x 28 grey."""

    name: ClassVar[str] = "mnist"
    test_counts: ClassVar[tuple[int, ...]] = (
        980,
        1_135,
        1_032,
        1_010,
        982,
        892,
        958,
        1_028,
        974,
        1_009,
    )
    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")
    default_eps: ClassVar[float] = 0.3
    licence: ClassVar[str] = "CC BY-SA 3.0, as commonly stated"
    source: ClassVar[str] = "http://yann.lecun.com/exdb/mnist"
    mirrors: ClassVar[tuple[str, ...]] = (
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    )
    packed: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "md5:9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "md5:ec29112dd5afa0611ce80d1b7f02629c",
    }
    content: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776"
        "db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101"
        "c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494c"
        "e7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33"
        "f2",
    }


class FashionMnist(Idx):
    """Fashion-MNIST: articles of clothing, 60,000 training and 10,000 test images, 28 x 28 grey."""

    name: ClassVar[str] = "fashion-mnist"
    test_counts: ClassVar[tuple[int, ...]] = (1_000,) * 10
    class_names: ClassVar[tuple[str, ...]] = (
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )
    default_eps: ClassVar[float] = 0.1
    licence: ClassVar[str] = "MIT"
    source: ClassVar[str] = "https://github.com/zalandoresearch/fashion-mnist"
    mirrors: ClassVar[tuple[str, ...]] = (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    )
    packed: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    }
    content: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d8"
        "88",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443"
        "d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce3"
        "7b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c"
        "34",
    }
