"""`cifar10` and `cifar100`: the official binary distributions; the pickled ones are not read."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.data.official import Bytes, Official
from bench.data.order import Integers
from bench.errors import BadInput, one_line
from bench.spec import Params
from bench.storage.data_root import data_root
from bench.storage.download import fetch

_SITE = "https://www.cs.toronto.edu/~kriz"
_PIXELS = 3 * 32 * 32
_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
_UNREADABLE = (OSError, EOFError, KeyError, zlib.error, tarfile.TarError)


class Cifar(Official[Params]):
    """A data set of records: label bytes, of which the last counts, then 3,072 pixel bytes, channel
    by channel.

    Attributes:
        archive, checksum: the published .tar.gz below the data root, and its checksum.
        folder: the folder in it; unpacked below the data root, its files are read instead.
        files: each split's files in order, with their SHA-256.
        label_bytes: label bytes a record.
    """

    image_shape: ClassVar[tuple[int, int, int] | None] = (3, 32, 32)
    splits: ClassVar[dict[str, int]] = {"test": 10_000, "train": 50_000}
    default_eps: ClassVar[float] = 8 / 255
    licence: ClassVar[str] = "none stated; cite Krizhevsky 2009"
    source: ClassVar[str] = f"{_SITE}/cifar.html"
    archive: ClassVar[str]
    checksum: ClassVar[str]
    folder: ClassVar[str]
    files: ClassVar[dict[str, dict[str, str]]]
    label_bytes: ClassVar[int]

    def read(self, split: str) -> tuple[Bytes, Integers]:
        records = np.concatenate(
            [self._records(content, file) for file, content in self._contents(split)]
        )
        labels = records[:, self.label_bytes - 1].astype(np.int64)
        return records[:, self.label_bytes :].reshape(-1, 3, 32, 32), labels

    def _records(self, content: bytes, file: str) -> Bytes:
        width = self.label_bytes + _PIXELS
        if len(content) % width:
            raise BadInput(
                f"{file} of {self.name} has {len(content)} bytes, not whole records of {width}: "
                "get the published file"
            )
        return np.frombuffer(content, np.uint8).reshape(-1, width)

    def _contents(self, split: str) -> list[tuple[str, bytes]]:
        folder = data_root() / self.folder
        if all((folder / file).is_file() for file in self.files[split]):
            paths = [
                fetch(f"{self.folder}/{file}", (), f"sha256:{digest}")
                for file, digest in self.files[split].items()
            ]
            return [(str(path), path.read_bytes()) for path in paths]
        packed = fetch(self.archive, [f"{_SITE}/{self.archive}"], self.checksum)
        return _members(packed, [f"{self.folder}/{file}" for file in self.files[split]])


def _members(path: Path, names: list[str]) -> list[tuple[str, bytes]]:
    """Contents of regular files in a .tar.gz, by name; nothing is unpacked to disk."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            files = [(name, archive.extractfile(name)) for name in names]
            return [(name, file.read() if file else b"") for name, file in files]
    except _UNREADABLE as error:
        raise BadInput(
            f"{path} cannot be read ({one_line(error)}): it is damaged; remove it to download it "
            "again"
        ) from error


class Cifar10(Cifar):
    """CIFAR-10: 10 kinds of objects, 50,000 training and 10,000 test images, 32 x 32 colour."""

    name: ClassVar[str] = "cifar10"
    test_counts: ClassVar[tuple[int, ...]] = (1_000,) * 10
    class_names: ClassVar[tuple[str, ...]] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    archive: ClassVar[str] = "cifar-10-binary.tar.gz"
    checksum: ClassVar[str] = "md5:c32a1d4ab5d03f1284b67883e8d87530"
    folder: ClassVar[str] = "cifar-10-batches-bin"
    files: ClassVar[dict[str, dict[str, str]]] = {
        "test": {
            "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"
        },
        "train": {
            "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        },
    }
    label_bytes: ClassVar[int] = 1


class Cifar100(Cifar):
    """CIFAR-100: 100 kinds of objects (the fine labels), 50,000 training and 10,000 test images, 32
    x 32 colour.
    """

    name: ClassVar[str] = "cifar100"
    test_counts: ClassVar[tuple[int, ...]] = (100,) * 100
    class_names: ClassVar[tuple[str, ...]] = tuple(_FINE.split())
    archive: ClassVar[str] = "cifar-100-binary.tar.gz"
    checksum: ClassVar[str] = "md5:03b5dce01913d631647c71ecec9e9cb8"
    folder: ClassVar[str] = "cifar-100-binary"
    files: ClassVar[dict[str, dict[str, str]]] = {
        "test": {"test.bin": "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"},
        "train": {"train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"},
    }
    label_bytes: ClassVar[int] = 2
