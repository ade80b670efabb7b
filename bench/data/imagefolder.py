"""`imagefolder:PATH`: pictures in one folder a class."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from bench.data.dataset import ImageSet, OwnImages, OwnParams
from bench.data.pictures import View, in_order, pictures_in, subfolders
from bench.errors import BadInput, one_line
from bench.spec import Params

_SPLITS = ("test", "train", "val")
_SYNSET = re.compile(r"n[0-9]{8}")


class ImageFolderParams(OwnParams):
    path: str = Field(
        description="folder with test/CLASS/PICTURE, and train and val beside test if any; or with "
        "CLASS/PICTURE"
    )
    size: int = Field(
        0,
        ge=0,
        description="resize the shorter side to this and cut out the middle square; 0: as they are",
    )
    resize: int = Field(
        0,
        ge=0,
        description="resize the shorter side to this instead, before the square of `size` is cut "
        "out; size=224,resize=256 is the usual preprocessing",
    )
    grey: bool = Field(False, description="one channel instead of three")
    classes: str = Field(
        "",
        description="all classes that the classifier knows, in its order, where the folder lacks "
        "some: names joined by +, or a text file with one a line; else the folders, sorted",
    )

    @model_validator(mode="after")
    def _crops_what_is_there(self) -> ImageFolderParams:
        if self.resize and not self.size:
            raise ValueError(f"resize={self.resize} needs size=N, the square to cut out")
        if 0 < self.resize < self.size:
            raise ValueError(f"resize={self.resize} leaves no square of size={self.size} to cut")
        return self


class ImageFolder(OwnImages[ImageFolderParams]):
    """Pictures (PNG, JPEG and the like) in one folder a class.

    Classes are the folder names, sorted. ids are indices in a split, sorted by class and file name;
    a fixed permutation lets the classes take turns. Pictures are decoded by Pillow when they are
    evaluated.
    """

    Params: ClassVar[type[Params]] = ImageFolderParams

    @property
    def may_be_shown(self) -> bool:
        """Folders that are called as synsets (n01440764) are ImageNet's, or a part of it.

        Raises `BadInput` where there is no such folder, since nobody can tell then.
        """
        if not (names := self._classes()):
            raise BadInput(f"{self.params.path} has no class folders: put them there again")
        return super().may_be_shown and not any(map(_SYNSET.fullmatch, names))

    @property
    def num_classes(self) -> int:
        """As many as there are class folders, at least 2."""
        return max(2, len(self._classes()))

    def test(self) -> ImageSet:
        """The pictures in `test`, or in the class folders themselves. Raises `BadInput` where there
        are none.
        """
        return self._split("test")

    def train(self) -> ImageSet:
        """The pictures in `train`. Raises `BadInput` where there are none."""
        return self._split("train")

    def validation(self) -> ImageSet:
        """The pictures in `val`. Raises `BadInput` where there are none."""
        return self._split("val")

    def _folder(self, split: str) -> Path | None:
        """Where a split lies, or None."""
        root = Path(self.params.path).expanduser()
        if "test" in subfolders(root):
            return root / split if split in subfolders(root) else None
        return root if split == "test" else None

    def _classes(self) -> list[str]:
        folders = [folder for folder in map(self._folder, _SPLITS) if folder]
        there = sorted({name for folder in folders for name in subfolders(folder)})
        if not self.params.classes:
            return there
        named = _class_names(self.params.classes)
        missing = [name for name in there if name not in named]
        if missing:
            raise BadInput(
                f"{self.params.path} has the class folder {missing[0]!r}, which classes does not "
                f"name: add it, or drop the folder ({len(named)} names were given)"
            )
        return named

    def _split(self, split: str) -> ImageSet:
        folder = self._folder(split)
        if folder is None:
            raise BadInput(
                f"{self.params.path} has no {split} pictures: put them into "
                f"{self.params.path}/{split}/CLASS"
            )
        pictures = [
            (path, label)
            for label, name in enumerate(self._classes())
            for path in _pictures(folder / name)
        ]
        if not pictures:
            raise BadInput(
                f"{folder} has no pictures in class folders: put them into {folder}/CLASS"
            )
        labels = np.array([label for _, label in pictures], dtype=np.int64)
        view = View(self.params.grey, self.params.resize or self.params.size, self.params.size)
        return in_order([path for path, _ in pictures], labels, np.arange(len(pictures)), view)


def _class_names(text: str) -> list[str]:
    """Names joined by +, or one a line in a text file."""
    file = Path(text).expanduser()
    try:
        lines = file.read_text().splitlines() if file.is_file() else text.split("+")
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read class names from {text}: {one_line(error)}") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise BadInput(
            f"classes={text[:80]} gives {len(names)} names, {len(set(names))} of them different: "
            "give each class once, and at least two"
        )
    return names


def _pictures(folder: Path) -> list[Path]:
    return pictures_in(folder) if folder.is_dir() else []
