"""What can be seen of a record: its clean images, its points, or why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.data.dataset import Dataset, ImageSet
from bench.errors import BadInput, one_line
from bench.plugins.create import DATASETS, create
from bench.report.pictures.levels import (
    Levels,
    change_levels,
    factor_for,
    is_picture,
    to_levels,
)
from bench.results.points import read_points
from bench.results.record import Record
from bench.spec import parse

WHICH = ("clean", "attacked", "change")
"""The pictures of an image, in the order in which they stand."""

NOT_SHOWN = (
    "The licence of this data set forbids showing its images: no pixel of them is shown, of the "
    "attacked ones neither."
)


@dataclass(frozen=True)
class Seen:
    """Pictures of one record.

    Attributes:
        clean: clean images, float32 (n, C, H, W) in [0, 1]; None where they cannot be shown.
        points: attacked images, as `clean`.
        notes: why something is not shown, for people.
        class_names: in label order; empty where they are not known.
    """

    clean: npt.NDArray[np.float32] | None
    points: npt.NDArray[np.float32] | None
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    @property
    def which(self) -> tuple[str, ...]:
        """Those of `WHICH` that can be shown."""
        there = (self.clean is not None, self.points is not None, self.change is not None)
        return tuple(name for name, shown in zip(WHICH, there, strict=True) if shown)

    @cached_property
    def change(self) -> npt.NDArray[np.float32] | None:
        """What the attack changed, (n, C, H, W); None where one of both is not there."""
        if self.clean is None or self.points is None:
            return None
        return self.points - self.clean

    @cached_property
    def factor(self) -> float:
        """By what the change is multiplied, the same for all images of the record."""
        return 1.0 if self.change is None else factor_for(self.change)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W); empty where nothing is shown."""
        shown = self.clean if self.clean is not None else self.points
        return () if shown is None else tuple(shown.shape[1:])

    def levels(self, which: str, first: int = 0, last: int | None = None) -> Levels:
        """8-bit pictures of the images from `first` up to `last`, uint8 (m, C, H, W); `which` is
        one of `which`.
        """
        if which == "change":
            assert self.change is not None
            return change_levels(self.change[first:last], self.factor)
        pixels = self.clean if which == "clean" else self.points
        assert pixels is not None
        return to_levels(pixels[first:last])


@dataclass
class Images:
    """Clean images of records; of a data set all records share what was read.

    Attributes:
        check: raises `BadInput` where a record names code that may not be run.
        known: data sets that are at hand, with their evaluated images, by the hash of these.
    """

    check: Callable[[Record], None]
    known: Mapping[str, tuple[Dataset[Any], ImageSet]] = field(default_factory=dict)
    _read: dict[str, ImageSet] = field(default_factory=dict)

    def seen(self, record: Record, folder: Path) -> Seen:
        """What can be seen of a record whose points lie in `folder`; what cannot be read is told
        in the notes.
        """
        notes: list[str] = []
        try:
            dataset = self._dataset(record)
        except BadInput as error:
            return Seen(None, None, (f"No images are shown: {error}.",))
        if dataset is not None:
            try:
                if not dataset.may_be_shown:
                    return Seen(None, None, (NOT_SHOWN,), dataset.class_names)
            except BadInput as error:
                return Seen(None, None, (f"No images are shown: {error}.",))
        clean = points = None
        try:
            clean = self._clean(record, dataset)
        except BadInput as error:
            notes.append(f"Clean images are not shown: {error}.")
        try:
            points = read_points(record, folder)
        except BadInput as error:
            notes.append(f"Attacked images are not shown: {error}.")
        names = dataset.class_names if dataset else ()
        return _pictures(clean, points, notes, names)

    def _dataset(self, record: Record) -> Dataset[Any] | None:
        """The record's data set, not read yet; None for arrays of a Python program."""
        if (known := self.known.get(record.identity["dataset"]["sha256"])) is not None:
            return known[0]
        spec = record.sources["dataset"]
        if spec.startswith("python:"):
            return None
        self.check(record)
        return create(DATASETS, parse(spec)).plugin

    def _clean(self, record: Record, dataset: Dataset[Any] | None) -> npt.NDArray[np.float32]:
        identity, n = record.identity["dataset"], record.metrics.n
        if (known := self.known.get(identity["sha256"])) is not None:
            return np.asarray(known[1].pixels().numpy())
        if dataset is None:
            raise BadInput("they came from a Python program, and no file holds them")
        spec = record.sources["dataset"]
        if spec not in self._read:
            try:
                self._read[spec] = dataset.test()
            except BadInput:
                raise
            except Exception as error:
                raise BadInput(f"{spec[:200]} cannot be read ({one_line(error)})") from error
        everything = self._read[spec]
        images = everything.first(min(n, len(everything)))
        if images.sha256 != identity["sha256"]:
            raise BadInput(
                f"the images of {spec[:200]} are not those of the record: they have changed"
            )
        return np.asarray(images.pixels().numpy())


def _pictures(
    clean: npt.NDArray[np.float32] | None,
    points: npt.NDArray[np.float32] | None,
    notes: list[str],
    names: tuple[str, ...],
) -> Seen:
    if clean is not None and points is not None and clean.shape != points.shape:
        notes.append("Attacked images are not shown: they are of another shape than the clean.")
        points = None
    shown = clean if clean is not None else points
    if shown is not None and not is_picture(tuple(shown.shape[1:])):
        shape = " x ".join(map(str, shown.shape[1:]))
        notes.append(f"No images are shown: {shape} is neither grey nor in colour.")
        return Seen(None, None, tuple(notes), names)
    return Seen(clean, points, tuple(notes), names)
