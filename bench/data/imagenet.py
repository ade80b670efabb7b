"""`imagenet:PATH`: the validation images of ILSVRC 2012."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from bench.data.dataset import Dataset, DeclaredImages, ImageSet
from bench.data.pictures import View, in_order, pictures_in, subfolders
from bench.errors import BadInput, Missing
from bench.plugins.registry import existing_file
from bench.spec import Params
from bench.storage.missing import stand_in

_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\b")
_SYNSET = re.compile(r"\bn\d{8}\b")
_CLASS = re.compile(r"\s(\d+)\s*$")
_ROBUSTBENCH = "robustbench"
_ROBUSTBENCH_SHA256 = "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574"


class ImageNetParams(Params):
    path: str = Field(
        description="folder of validation pictures: in one folder a synset, or all in it"
    )
    labels: str = Field(
        "",
        description="where all are in it: file with a synset, or a picture's name and class, a "
        "line",
    )
    list: str = Field(
        "",
        description="evaluate these: a file with a picture's name a line, or robustbench for its "
        "5,000",
    )
    resize: int = Field(256, ge=1, description="length of the shorter side after resizing")
    size: int = Field(224, ge=1, description="side of the square cut out of the middle")

    @model_validator(mode="after")
    def _fits(self) -> ImageNetParams:
        if self.resize < self.size:
            raise ValueError(
                f"resize={self.resize} is smaller than size={self.size}; give a larger resize"
            )
        return self


class ImageNet(Dataset[ImageNetParams]):
    """ImageNet: the 50,000 validation images of ILSVRC 2012 in 1,000 classes, cut to 224 x 224
    colour.

    Classes are the synsets, sorted. ids are the numbers in the file names, less one; their order,
    or the list's, is kept where its labels are mixed. Pictures are resized bilinearly with
    antialiasing by Pillow when they are evaluated.
    """

    Params: ClassVar[type[Params]] = ImageNetParams
    positional: ClassVar[str | None] = "path"
    default_eps: ClassVar[float] = 4 / 255
    splits: ClassVar[dict[str, int]] = {"test": 50_000}
    test_counts: ClassVar[tuple[int, ...]] = (50,) * 1_000
    licence: ClassVar[str] = "non-commercial research and education only"
    source: ClassVar[str] = "https://image-net.org/challenges/LSVRC/2012 (on request)"
    synsets: ClassVar[int] = 1_000

    @property
    def drawn_from(self) -> tuple[str, ...]:
        """The official validation set."""
        return ("imagenet/val",)

    @property
    def may_be_shown(self) -> bool:
        """Its terms grant no right to publish the images."""
        return False

    @property
    def num_classes(self) -> int:
        return self.synsets

    def test(self) -> ImageSet:
        """The validation images, those of the list where one is given. Raises `BadInput` where they
        cannot be found.
        """
        try:
            known = self._known()
        except Missing as error:
            told = Missing(f"{error}; the validation images come from {self.source}")
            return stand_in(f"imagenet:{self.params}", told, self._declared)
        chosen = self._listed() if self.params.list else sorted(known)
        missing = next((number for number in chosen if number not in known), None)
        if missing is not None or not chosen:
            what = f"ILSVRC2012_val_{missing:08d}.JPEG" if missing else "any ILSVRC2012_val_*.JPEG"
            raise BadInput(f"{self.params.path} lacks {what}: give the complete validation folder")
        labels = np.array([known[number][1] for number in chosen], dtype=np.int64)
        ids = np.array(chosen, dtype=np.int64) - 1
        return in_order(
            [known[number][0] for number in chosen],
            labels,
            ids,
            View(False, self.params.resize, self.params.size),
        )

    def _declared(self) -> ImageSet:
        """As many images as are to be evaluated, none of them there."""
        count = len(self._listed()) if self.params.list else self.splits["test"]
        size = self.params.size
        return DeclaredImages.of("imagenet/val", count, (3, size, size), self.synsets)

    def train(self) -> ImageSet:
        """Raises `BadInput`: the training images do not fit into memory."""
        raise BadInput("imagenet offers no training images: use imagefolder:PATH for some of them")

    def _known(self) -> dict[int, tuple[Path, int]]:
        """File and label by the number in the file name."""
        root = Path(self.params.path).expanduser()
        names = subfolders(root)
        if not names:
            labels = self._labels()
            return {_number(path): (path, self._label(labels, path)) for path in pictures_in(root)}
        if len(names) != self.synsets:
            raise BadInput(
                f"{root} has {len(names)} folders where {self.synsets} synsets are expected: give "
                "the complete validation folder"
            )
        return {
            _number(path): (path, label)
            for label, name in enumerate(names)
            for path in pictures_in(root / name)
        }

    def _label(self, labels: dict[int, int], path: Path) -> int:
        if _number(path) not in labels:
            raise BadInput(
                f"{self.params.labels} has no label of {path.name}: give the labels of all "
                "validation images"
            )
        return labels[_number(path)]

    def _labels(self) -> dict[int, int]:
        """Label by the number in the file name, from the file of labels."""
        if not self.params.labels:
            raise BadInput(
                f"{self.params.path} has no folder a synset: add labels=FILE, a synset or a "
                "picture's name and class a line"
            )
        lines = read_lines(self.params.labels, "labels")
        labels = _classes(lines, self.params.labels)
        if len(set(labels)) != self.synsets or max(labels) >= self.synsets:
            counts = f"{len(set(labels))} classes up to {max(labels)}"
            raise BadInput(
                f"{self.params.labels} has {counts} where {self.synsets} from 0 are expected: give "
                "the labels of all validation images"
            )
        return {
            _numbered(line, place): label
            for place, (line, label) in enumerate(zip(lines, labels, strict=True), 1)
        }

    def _listed(self) -> list[int]:
        """Numbers of the pictures to evaluate, in the list's order."""
        text = self.params.list
        lines = read_lines(str(robustbench_list()) if text == _ROBUSTBENCH else text, "list")
        numbers = [int(named.group(1)) for named in map(_FILE.search, lines) if named]
        if len(numbers) != len(lines) or len(set(numbers)) != len(numbers):
            raise BadInput(
                f"{text} does not name another ILSVRC2012_val_*.JPEG on each line: correct it"
            )
        return numbers


def robustbench_list() -> Path:
    """The list of 5,000 validation pictures that the installed package robustbench evaluates on."""
    package = importlib.util.find_spec(_ROBUSTBENCH)
    path = (
        Path(package.origin if package and package.origin else "").parent
        / "helper_files"
        / "imagenet_test_image_ids.txt"
    )
    if not path.is_file():
        raise BadInput(
            "list=robustbench needs a list that the package robustbench brings: pip install "
            "--no-deps robustbench"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _ROBUSTBENCH_SHA256:
        raise BadInput(
            f"{path} has SHA-256 {digest}, not {_ROBUSTBENCH_SHA256}: install robustbench 1.1.1, "
            "or give list=PATH"
        )
    return path


def read_lines(path: str, what: str) -> list[str]:
    """The lines of a text file, without blank ones at its end; `what` names the parameter.

    Raises `BadInput` where the file is missing, no text, empty, or has a blank line inside.
    """
    try:
        lines = existing_file(path, f"{what}={path}").read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no text file: give one with a picture a line") from error
    if not "".join(lines).strip():
        raise BadInput(f"{path} is empty: give a picture a line")
    while not lines[-1].strip():
        lines.pop()
    # Lines without a name belong to pictures by their place.
    blank = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if blank:
        raise BadInput(
            f"{path} has a blank line {blank}, which would move all labels behind it: remove it"
        )
    return lines


def _classes(lines: list[str], path: str) -> list[int]:
    """The class on each line: a synset's place among all, else the number behind a
    picture's name.
    """
    synsets = [synset.group() for synset in map(_SYNSET.search, lines) if synset]
    if len(synsets) == len(lines):
        places = {synset: place for place, synset in enumerate(sorted(set(synsets)))}
        return [places[synset] for synset in synsets]
    numbers = [
        int(label.group(1))
        for line in lines
        if _FILE.search(line) and (label := _CLASS.search(line))
    ]
    if len(numbers) != len(lines):
        # Numbers alone could be ILSVRC's own ids, which are in another order.
        raise BadInput(
            f"{path} gives neither a synset nor a picture's name and class on each line: give one "
            "of them"
        )
    return numbers


def _number(path: Path) -> int:
    named = _FILE.match(path.name)
    if named is None:
        raise BadInput(
            f"{path} is not named ILSVRC2012_val_*.JPEG: remove it, or use imagefolder:PATH"
        )
    return int(named.group(1))


def _numbered(line: str, place: int) -> int:
    """The number of the picture that a line is about: the one it names, else the line's own."""
    named = _FILE.search(line)
    return int(named.group(1)) if named else place
