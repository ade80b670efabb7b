"""The contract of a data set: where evaluated and training images come from."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from bench.errors import BadInput
from bench.plugins.plugin import P, Plugin
from bench.spec import Params
from bench.storage.missing import DECLARED


@dataclass(frozen=True)
class ImageSet:
    """Images with labels, in the order in which they are evaluated.

    Attributes:
        images: uint8 or float32 (n, C, H, W); float pixels in [0, 1].
        labels: int64 (n,), 0 <= label < num_classes.
        ids: int64 (n,), unique; the image's index in its official split. Randomness and records are
            keyed by it.
        notes: what a user should know of how they were read; no part of their hash.
    """

    images: Tensor
    labels: Tensor
    ids: npt.NDArray[np.int64]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int) -> ImageSet:
        """The first n images of the order."""
        return self.at(np.arange(n))

    def at(self, positions: npt.NDArray[np.int64]) -> ImageSet:
        """The images at these positions."""
        index = torch.from_numpy(positions)
        return ImageSet(self.images[index], self.labels[index], self.ids[positions], self.notes)

    def pixels(self) -> Tensor:
        """Images as float32 in [0, 1]."""
        return self.images.float() / 255 if self.images.dtype == torch.uint8 else self.images

    @cached_property
    def sha256(self) -> str:
        """Hash of images, labels and ids, in order."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)} {self.images.dtype}".encode())
        for array in (self.images.numpy(), self.labels.numpy(), self.ids):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class DeclaredImages(ImageSet):
    """Images that are not there: as many as are declared, all black, with labels that take turns.
    A plan counts them.

    Attributes:
        name: which images they would be, such as `cifar10/test`.
    """

    name: str = ""

    @classmethod
    def of(cls, name: str, n: int, shape: tuple[int, int, int], classes: int) -> DeclaredImages:
        """As many images of this shape."""
        ids = np.arange(n, dtype=np.int64)
        # One image in memory, however many there are.
        images = torch.zeros(1, *shape, dtype=torch.uint8).expand(n, *shape)
        return cls(images, torch.from_numpy(ids % classes), ids, name=name)

    def at(self, positions: npt.NDArray[np.int64]) -> DeclaredImages:
        index = torch.from_numpy(positions)
        images = self.images[:1].expand(len(positions), *self.images.shape[1:])
        return replace(self, images=images, labels=self.labels[index], ids=self.ids[positions])

    @property
    def sha256(self) -> str:
        """No hash, but the name, marked as declared."""
        return f"{DECLARED}{self.name}"


class Dataset(Plugin[P]):
    """A source of images. Subclasses set the class attributes and write `num_classes`, `test` and
    `train`.

    Attributes:
        default_classifier: classifier spec used where none is given; empty where there is none.
        default_generator: diffusion model spec used where a defense asks for none in particular;
            empty where there is none.
        default_norm, default_eps: the threat model used where none is given; eps 0 where there is
            none.
        class_names: in label order; empty where they are not known beforehand.
        image_shape: (C, H, W) where it is fixed.
        splits: how many images each split has, where that is fixed.
        test_counts: how many test images each class has, in label order, where that is fixed and
            known.
        other_test_sizes: how many test images other published files of this name have.
        licence, source: the images' licence and where they come from.
    """

    default_classifier: ClassVar[str] = ""
    default_generator: ClassVar[str] = ""
    default_norm: ClassVar[str] = "linf"
    default_eps: ClassVar[float] = 0.0
    class_names: ClassVar[tuple[str, ...]] = ()
    image_shape: ClassVar[tuple[int, int, int] | None] = None
    splits: ClassVar[dict[str, int]] = {}
    test_counts: ClassVar[tuple[int, ...]] = ()
    other_test_sizes: ClassVar[tuple[int, ...]] = ()
    licence: ClassVar[str] = ""
    source: ClassVar[str] = ""

    @property
    def drawn_from(self) -> tuple[str, ...]:
        """Names of the image sets that the evaluated images belong to, such as `mnist/train`; empty
        where unknown.
        """
        return ()

    @property
    def may_be_shown(self) -> bool:
        """Whether pictures of the images may stand on a page, by their licence. What makes pages
        and sheets of records shows no pixel of others, of the attacked images neither.
        """
        return True

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes K."""

    @abstractmethod
    def test(self) -> ImageSet:
        """The images to evaluate on, in evaluation order."""

    @abstractmethod
    def train(self) -> ImageSet:
        """The training images. Raises `BadInput` where there are none."""

    def validation(self) -> ImageSet:
        """The official validation images, apart from the others. Raises `BadInput` where there are
        none.
        """
        raise BadInput(
            f"{type(self).__name__} has no official validation images: hold some of train() back"
        )


class OwnParams(Params):
    """Parameters of images of the user's own."""

    path: str
    drawn_from: str = Field(
        "",
        description="the image set that the evaluated images belong to, such as mnist/train, if "
        "known",
    )


Own = TypeVar("Own", bound=OwnParams)


class OwnImages(Dataset[Own]):
    """Images of the user's own, of which nothing is known but what the parameters say."""

    positional: ClassVar[str | None] = "path"

    @property
    def drawn_from(self) -> tuple[str, ...]:
        return (self.params.drawn_from,) if self.params.drawn_from else ()

    @property
    def may_be_shown(self) -> bool:
        """Whose images they are is the user's to know; those drawn from ImageNet may not."""
        return not any(name.startswith("imagenet") for name in self.drawn_from)
