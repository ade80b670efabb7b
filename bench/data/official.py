"""Published data sets with fixed splits: what is common to them, and what is checked when they are
read.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from bench.data.dataset import Dataset, DeclaredImages, ImageSet
from bench.data.order import Integers, evaluation_order
from bench.errors import BadInput, Missing
from bench.plugins.plugin import P
from bench.storage.missing import stand_in

Bytes = npt.NDArray[np.uint8]


class Official(Dataset[P]):
    """A published data set. Subclasses set the class attributes, `name` among them, and write
    `read`.

    ids are indices in the official split. The official order is kept where its labels are mixed,
    else a fixed permutation lets the classes take turns.

    Attributes:
        name: as in `cifar10/test`; also names files below the data root.
    """

    name: ClassVar[str]

    def __init__(self, params: P) -> None:
        super().__init__(params)
        self._read: dict[str, ImageSet] = {}

    @property
    def drawn_from(self) -> tuple[str, ...]:
        """The official test set."""
        return (f"{self.name}/test",)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def test(self) -> ImageSet:
        """The official test images. Raises `BadInput` where the files cannot be had or are not the
        published ones.
        """
        return self._split("test")

    def train(self) -> ImageSet:
        """The official training images. Raises `BadInput` like `test`."""
        return self._split("train")

    def validation(self) -> ImageSet:
        """The official validation images. Raises `BadInput` like `test`, and where there
        are none.
        """
        return self._split("val") if "val" in self.splits else super().validation()

    @abstractmethod
    def read(self, split: str) -> tuple[Bytes, Integers]:
        """A split's images (n, C, H, W) and labels (n,), in official order."""

    def size(self, split: str) -> int:
        """How many images a split must have."""
        return self.splits[split]

    def _split(self, split: str) -> ImageSet:
        if split not in self._read:
            try:
                images, labels = self.read(split)
            except Missing as error:
                return stand_in(f"{self.name}/{split}", error, lambda: self._declared(split))
            self._check(split, images, labels)
            everything = ImageSet(
                torch.from_numpy(images), torch.from_numpy(labels), np.arange(len(labels))
            )
            self._read[split] = everything.at(evaluation_order(labels))
        return self._read[split]

    def _declared(self, split: str) -> ImageSet:
        """As many images as the split has, none of them there."""
        if self.image_shape is None:
            raise NotImplementedError(f"{type(self).__name__} declares no image_shape")
        name = f"{self.name}/{split}"
        return DeclaredImages.of(name, self.size(split), self.image_shape, self.num_classes)

    def _check(self, split: str, images: npt.NDArray[Any], labels: Integers) -> None:
        what = f"{self.name}'s {split} images"
        expected = (self.size(split), *(self.image_shape or ()))
        if images.shape != expected or images.dtype != np.uint8:
            raise BadInput(
                f"{what} are {images.dtype} {images.shape} where uint8 {expected} is expected: get "
                "the published file"
            )
        if labels.shape != expected[:1]:
            raise BadInput(
                f"{what} have labels {labels.shape} where {expected[:1]} is expected: get the "
                "published file"
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            top = self.num_classes - 1
            raise BadInput(
                f"{what} have labels {labels.min()} to {labels.max()} where 0 to {top} is "
                "expected: get the published file"
            )
