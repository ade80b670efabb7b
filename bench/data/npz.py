"""`npz:PATH`: images and labels from a NumPy archive."""

from __future__ import annotations

import zipfile
import zlib
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from bench.data.arrays import MOST_CLASSES, count_classes, read_images, read_labels
from bench.data.dataset import ImageSet, OwnImages, OwnParams
from bench.data.order import Integers, evaluation_order
from bench.errors import BadInput, one_line
from bench.plugins.registry import existing_file
from bench.spec import Params

_SPLITS = ("test", "train", "val")
_NAMINGS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
# An archive of one unnamed split can only be what is evaluated.
_UNNAMED = (("x", "y"), ("images", "labels"))


class NpzParams(OwnParams):
    path: str = Field(description="the .npz file")
    split: Literal["test", "train", "val"] = Field("test", description="the split to evaluate on")
    classes: int | None = Field(
        None,
        ge=2,
        le=MOST_CLASSES,
        description="number of classes, where the file lacks the last ones; else the largest "
        "label of all splits plus one",
    )


class Npz(OwnImages[NpzParams]):
    """Any .npz with x_test and y_test, with test_images and test_labels (MedMNIST), or with one
    unnamed split.

    Images are (n, H, W), (n, H, W, C) or (n, C, H, W), C 1 or 3, uint8 or float in [0, 1]; where
    both orders of axes fit, the channels come last. Pixels beyond [0, 1] by rounding are clipped.
    Labels are integers (n,) or (n, 1). ids are indices in the split. The file's order is kept
    where its labels are mixed, else a fixed permutation lets the classes take turns. Nothing is
    unpickled.
    """

    Params: ClassVar[type[Params]] = NpzParams

    @property
    def num_classes(self) -> int:
        """As given, else the largest label of all splits in the file plus one, at least 2."""
        with Archive(self.params.path) as archive:
            tops = [archive.labels(split).max() for split in _SPLITS if archive.keys(split)]
        if not tops:
            raise BadInput(archive.lacks("test"))
        return count_classes(self.params.path, int(max(tops)), self.params.classes)

    def test(self) -> ImageSet:
        """The split named by `split`. Raises `BadInput` where the file cannot be used."""
        return self._read_split(self.params.split)

    def train(self) -> ImageSet:
        """The training split. Raises `BadInput` where the file has none."""
        return self._read_split("train")

    def validation(self) -> ImageSet:
        """The split named `val`. Raises `BadInput` where the file has none."""
        return self._read_split("val")

    def _read_split(self, split: str) -> ImageSet:
        with Archive(self.params.path) as archive:
            if not archive.keys(split):
                raise BadInput(archive.lacks(split))
            labels = archive.labels(split)
            images, notes = archive.images(split)
        if len(labels) != len(images):
            counts = f"{len(images)} {split} images but {len(labels)} labels"
            raise BadInput(f"{self.params.path} has {counts}: give one each")
        everything = ImageSet(images, torch.from_numpy(labels), np.arange(len(labels)), notes)
        return everything.at(evaluation_order(labels))


class Archive:
    """An open .npz, each of whose arrays is checked as it is read."""

    def __init__(self, path: str) -> None:
        self.path = path
        file = existing_file(path, "npz:PATH")
        if not zipfile.is_zipfile(file):
            raise BadInput(
                f"{path} is not a complete .npz (truncated, or another format): write it with "
                "numpy.savez"
            )
        try:
            self._arrays = np.load(file, allow_pickle=False)
        except _UNREADABLE as error:
            raise BadInput(
                f"{path} cannot be opened ({one_line(error)}): write it with numpy.savez"
            ) from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._arrays.close()

    def keys(self, split: str) -> tuple[str, str] | None:
        """Names of a split's image and label arrays, or None where it has none."""
        pairs = [(x.format(split), y.format(split)) for x, y in _NAMINGS] + list(_UNNAMED) * (
            split == "test"
        )
        return next((pair for pair in pairs if set(pair) <= set(self._arrays.files)), None)

    def lacks(self, split: str) -> str:
        """The message for a split that is missing."""
        held = ", ".join(self._arrays.files) or "nothing"
        wanted = f"name the arrays x_{split} and y_{split}"
        return f"{self.path} has no {split} images with labels, it holds {held}: {wanted}"

    def images(self, split: str) -> tuple[Tensor, tuple[str, ...]]:
        """A split's images (n, C, H, W), uint8 or float32 in [0, 1], and notes on them."""
        key, array = self._read(split, 0)
        return read_images(f"{key} in {self.path}", array)

    def labels(self, split: str) -> Integers:
        """A split's labels (n,), not negative."""
        key, array = self._read(split, 1)
        return read_labels(f"{key} in {self.path}", array)

    def _read(self, split: str, which: Literal[0, 1]) -> tuple[str, npt.NDArray[Any]]:
        pair = self.keys(split)
        if pair is None:
            raise BadInput(self.lacks(split))
        key = pair[which]
        try:
            array: npt.NDArray[Any] | bytes = self._arrays[key]
        except _UNREADABLE as error:
            raise BadInput(self._unreadable(key, error)) from error
        # NumPy hands out a member that is not in its own format as it is.
        if isinstance(array, bytes):
            raise BadInput(
                f"{key} in {self.path} is not a NumPy array: write the file with numpy.savez"
            )
        if array.size == 0 or array.ndim == 0:
            raise BadInput(
                f"{key} in {self.path} is empty (shape {array.shape}): give at least one image"
            )
        return key, array

    def _unreadable(self, key: str, error: Exception) -> str:
        if "allow_pickle" in str(error):
            return (
                f"{key} in {self.path} holds Python objects, which are never unpickled: save "
                "plain number arrays"
            )
        return (
            f"{key} in {self.path} cannot be read ({one_line(error)}): the file is damaged; "
            "write it again"
        )
