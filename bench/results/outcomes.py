"""Per-image outcomes as compact strings: the raw material of every metric."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_WRONG = "-"

NO_STAGE, WRONG_BEFORE = -1, -2
"""Instead of the index of a stage: none broke the image, or it was wrong before the first began."""

NO_TARGET = -1
"""Instead of a target class: the image was not attacked, or had the target's label already."""

Labels = npt.NDArray[np.int64]

MAX_CLASSES = 1_000_000

_DASH = -2
_VALUES = np.full(256, -3, dtype=np.int64)
"""What each character of an encoded prediction stands for: a digit, a dash, or nothing."""
_VALUES[np.frombuffer(_DIGITS.encode(), dtype=np.uint8)] = np.arange(36)
_VALUES[ord(_WRONG)] = _DASH

_IDS = re.compile(r"[0-9]{1,18}(-[0-9]{1,18})?(,[0-9]{1,18}(-[0-9]{1,18})?)*", re.ASCII)


def encode(labels: Labels, num_classes: int) -> str:
    """Labels in base 36, fixed width; -1 (a NaN output) as dashes. (n,) to a string of n x width
    characters.
    """
    width, given = _width(num_classes), np.asarray(labels).tolist()
    texts = {
        label: _WRONG * width if label < 0 else np.base_repr(label, 36).lower().zfill(width)
        for label in set(given)
    }
    return "".join(texts[label] for label in given)


def decode(text: str, num_classes: int) -> Labels:
    """Inverse of `encode`. Raises `ValueError` for a text that `encode` cannot have written."""
    width = _width(num_classes)
    if len(text) % width or not text.isascii():
        raise ValueError(f"predictions are not written with {width} digits each")
    digits = _VALUES[np.frombuffer(text.encode("ascii"), dtype=np.uint8)].reshape(-1, width)
    dashes = digits == _DASH
    numbers = digits @ (36 ** np.arange(width - 1, -1, -1, dtype=np.int64))
    is_wrong = dashes.all(axis=1)
    is_class = (digits >= 0).all(axis=1) & (numbers < num_classes)
    if not (is_wrong | is_class).all():
        raise ValueError(f"a class is not in [0, {num_classes}), nor a dash")
    return np.where(is_wrong, -1, numbers)


def _width(num_classes: int) -> int:
    return len(np.base_repr(max(num_classes - 1, 1), 36))


def is_folded(text: str) -> bool:
    """Whether a text has the form of image ids: 0-99,120,130-131."""
    return _IDS.fullmatch(text) is not None


def count_ids(text: str) -> int:
    """How many images a text of ids is of; nothing of their size is made. Raises `ValueError` for
    another text.
    """
    if not is_folded(text):
        raise ValueError("ids are not of the form 0-99,120,130-131")
    runs = [run.partition("-") for run in text.split(",")]
    bounds = [(int(first), int(last or first)) for first, _, last in runs]
    count = sum(last - first + 1 for first, last in bounds)
    if any(first > last for first, last in bounds):
        raise ValueError("a run of ids ends before it begins")
    return count


def check_ids(text: str, n: int) -> None:
    """Raise `ValueError` unless a text is that of n different ids; nothing of their size is
    allocated before they are counted.
    """
    count = count_ids(text)
    if count != n:
        raise ValueError(f"ids are of {count} images, labels of {n}")
    ids = decode_ids(text)
    if len(np.unique(ids)) != n:
        raise ValueError("an image id is there twice")
    if encode_ids(ids) != text:
        raise ValueError("ids are not folded")


def encode_ids(ids: Sequence[int] | Labels) -> str:
    """Image ids with runs folded: 0-99,120,130-131."""
    runs: list[list[int]] = []
    for i in (int(i) for i in ids):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def decode_ids(text: str) -> Labels:
    """Inverse of `encode_ids`."""
    runs = [run.split("-") for run in text.split(",") if run]
    return np.array(
        [i for run in runs for i in range(int(run[0]), int(run[-1]) + 1)], dtype=np.int64
    )


class Outcomes(BaseModel):
    """What the defense answered, image by image.

    Attributes:
        num_classes: number of classes K.
        ids: image ids, runs folded.
        labels: true labels, encoded.
        clean: predictions on the clean images, one string a judged draw (one for a deterministic
            defense). For a stochastic defense this is the null attack: judging alone, with as many
            draws.
        adversarial: predictions on the attacked images, one string a judged draw, drawn after the
            attack had ended.
        replayed: predictions on the attacked images under the attack's own fixed noise, one string
            a fixed draw; empty where it had none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: int
    ids: str
    labels: str
    clean: list[str]
    adversarial: list[str]
    replayed: list[str]

    @model_validator(mode="after")
    def _is_of_one_set_of_images(self) -> Outcomes:
        if not 2 <= self.num_classes <= MAX_CLASSES:
            raise ValueError(f"{self.num_classes} classes: there are 2 to {MAX_CLASSES}")
        n, rest = divmod(len(self.labels), _width(self.num_classes))
        strings = [self.labels, *self.clean, *self.adversarial, *self.replayed]
        paired = 0 < len(self.clean) == len(self.adversarial)
        if not n or rest or not paired or any(len(s) != len(self.labels) for s in strings):
            raise ValueError("ids, labels and predictions differ in length")
        check_ids(self.ids, n)
        for text in strings:
            decode(text, self.num_classes)
        if (self.true_labels() < 0).any():
            raise ValueError("a label is a dash")
        return self

    @classmethod
    def of(
        cls,
        k: int,
        ids: Labels,
        labels: Labels,
        clean: Labels,
        adversarial: Labels,
        replayed: Labels,
    ) -> Outcomes:
        """From arrays: labels (n,), predictions (n, draws)."""
        strings = [
            [encode(column, k) for column in block.T] for block in (clean, adversarial, replayed)
        ]
        return cls(
            num_classes=k,
            ids=encode_ids(ids),
            labels=encode(labels, k),
            clean=strings[0],
            adversarial=strings[1],
            replayed=strings[2],
        )

    def image_ids(self) -> Labels:
        """Image ids (n,)."""
        return decode_ids(self.ids)

    def true_labels(self) -> Labels:
        """True labels (n,)."""
        return decode(self.labels, self.num_classes)

    def predictions(self, which: str) -> Labels:
        """Predictions (n, draws) of `clean`, `adversarial` or `replayed`."""
        strings: list[str] = getattr(self, which)
        columns = [decode(text, self.num_classes) for text in strings]
        return (
            np.stack(columns, axis=1)
            if columns
            else np.empty((len(self.true_labels()), 0), dtype=np.int64)
        )

    def correct(self, which: str) -> npt.NDArray[np.bool_]:
        """Whether each prediction is right, bool (n, draws).

        On an attacked image it must be right on the clean image under the same draw as well: a
        clean-wrong answer is never robust, and an attack that happens to set one right wins nothing
        for the defense.
        """
        right = self.predictions(which) == self.true_labels()[:, None]
        if which == "adversarial":
            right &= self.correct("clean")
        return np.asarray(right)


class Stages(BaseModel):
    """Which of an attack's stages broke each image, as the attack itself saw it while it ran.

    A later stage attacks what the earlier ones left. Where nothing is random this is the verdict
    taken apart; under random draws an attack may take a chance hit for a success, and the verdict
    is the judge's alone.

    Attributes:
        names: the stages in their order.
        broken_by: one character an image: the stage's index in base 36, `.` where the clean image
            was wrong already, `-` where all stages failed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: list[str]
    broken_by: str

    @model_validator(mode="after")
    def _names_what_broke(self) -> Stages:
        if not 0 < len(set(self.names)) == len(self.names) <= len(_DIGITS):
            raise ValueError("stages are named twice, are too many, or none")
        if not self.broken_by or not set(self.broken_by) <= {*_DIGITS[: len(self.names)], ".", "-"}:
            raise ValueError("an image was broken by a stage that is not there")
        return self

    @classmethod
    def of(cls, names: Sequence[str], stages: Labels) -> Stages:
        """From indices (n,) of stages, `NO_STAGE` or `WRONG_BEFORE`."""
        special = {NO_STAGE: _WRONG, WRONG_BEFORE: "."}
        return cls(
            names=list(names), broken_by="".join(special.get(int(s)) or _DIGITS[s] for s in stages)
        )

    def left(self) -> dict[str, float]:
        """Share of the images that each stage left unbroken, `clean` first."""
        n, surviving = len(self.broken_by), len(self.broken_by) - self.broken_by.count(".")
        shares = {"clean": surviving / n}
        for index, name in enumerate(self.names):
            surviving -= self.broken_by.count(_DIGITS[index])
            shares[name] = surviving / n
        return shares
