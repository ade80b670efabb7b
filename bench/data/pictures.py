"""Pictures in files, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from bench.data.dataset import ImageSet
from bench.data.order import Integers, evaluation_order
from bench.errors import BadInput, Missing, one_line

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
_DEEP = ("I", "F")


@dataclass(frozen=True)
class View:
    """How a picture becomes an image.

    Attributes:
        grey: one channel instead of three.
        shorter: length of the shorter side after resizing; 0 keeps the picture's own size.
        crop: side of the square that is cut out of the middle; 0 cuts nothing.
    """

    grey: bool = False
    shorter: int = 0
    crop: int = 0

    def __call__(self, path: Path) -> Tensor:
        """The picture as uint8 (C, H, W). Raises `BadInput` where the file cannot be decoded."""
        try:
            with PIL.Image.open(path) as file:
                deep = file.mode.startswith(_DEEP)
                picture = file.convert("L" if self.grey else "RGB")
        except Exception as error:
            raise BadInput(
                f"{path} cannot be decoded ({one_line(error)}): repair or remove it"
            ) from error
        if deep:
            raise BadInput(
                f"{path} has more than 8 bits a channel, which would be clipped to white: convert "
                "it to 8 bits"
            )
        if self.shorter:
            picture = picture.resize(self._resized(picture.size), PIL.Image.Resampling.BILINEAR)
        pixels = self._middle(np.array(picture))
        return torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).copy())

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height with the shorter side as asked and the longer one rounded down."""
        width, height = size
        return (
            max(self.shorter, self.shorter * width // height),
            max(self.shorter, self.shorter * height // width),
        )

    def _middle(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if not self.crop:
            return pixels
        # Half a pixel goes to the even side, as round() does.
        top, left = (round((side - self.crop) / 2) for side in pixels.shape[:2])
        return pixels[top : top + self.crop, left : left + self.crop]


class Pictures(ImageSet):
    """An image set whose images are in `files`: `first` and `at` decode what they return, `images`
    decodes all.
    """

    files: Sequence[Path]
    _view: Callable[[Path], Tensor]

    def __init__(
        self, files: Sequence[Path], labels: Integers, ids: Integers, view: Callable[[Path], Tensor]
    ) -> None:
        for name, value in (
            ("labels", torch.from_numpy(labels)),
            ("ids", ids),
            ("files", files),
            ("_view", view),
        ):
            object.__setattr__(self, name, value)

    @cached_property
    def images(self) -> Tensor:
        """All images, uint8 (n, C, H, W)."""
        return self.at(np.arange(len(self))).images

    def at(self, positions: npt.NDArray[np.int64]) -> ImageSet:
        """The images at these positions, decoded. Raises `BadInput` where one cannot be, or has
        another size.
        """
        files = [self.files[i] for i in positions]
        return ImageSet(
            _decoded(files, self._view),
            self.labels[torch.from_numpy(positions)],
            self.ids[positions],
        )


def in_order(files: Sequence[Path], labels: Integers, ids: Integers, view: View) -> Pictures:
    """Pictures in evaluation order."""
    order = evaluation_order(labels)
    return Pictures([files[i] for i in order], labels[order], ids[order], view)


def _decoded(files: Sequence[Path], view: Callable[[Path], Tensor]) -> Tensor:
    """Images (n, C, H, W), n > 0, each decoded into its place."""
    first = view(files[0])
    images = first.new_empty((len(files), *first.shape))
    for place, file in zip(images, files, strict=True):
        image = view(file)
        if image.shape != first.shape:
            shapes = f"{file} is {tuple(image.shape)}, {files[0]} is {tuple(first.shape)}"
            raise BadInput(f"{shapes}: add size=N to bring all pictures to one size")
        place.copy_(image)
    return images


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones do not count. Raises `BadInput` where
    it cannot be listed.
    """
    return sorted(entry.name for entry in _visible(folder) if entry.is_dir())


def pictures_in(folder: Path) -> list[Path]:
    """The picture files in a folder, recognised by their suffix, sorted by name; hidden ones do not
    count. Raises like `subfolders`.
    """
    return sorted(
        Path(entry.path)
        for entry in _visible(folder)
        if Path(entry.name).suffix.lower() in _SUFFIXES
    )


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except (OSError, ValueError) as error:
        kind = Missing if isinstance(error, FileNotFoundError) else BadInput
        raise kind(
            f"cannot list the folder {str(folder)[:200]} "
            f"({getattr(error, 'strerror', None) or one_line(error)}): check the path"
        ) from error
