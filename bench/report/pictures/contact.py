"""A contact sheet of a record as one picture: clean, attacked, change, and what was answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from bench.errors import BadInput
from bench.report.escape import terminal
from bench.report.pictures.levels import picture, png
from bench.report.pictures.seen import Seen
from bench.report.pictures.verdicts import KINDS, kinds
from bench.report.words import attack_label, defense_label, heading
from bench.results.outcomes import Labels
from bench.results.record import Record
from bench.storage.files import write_whole

ACROSS = 8
"""So many images stand side by side; a sheet shows at most one row of each kind."""

_SIDE, _GAP, _MARGIN, _NAMES = 96, 10, 20, 84
_TEXT, _LINE, _TITLE = 13, 18, 17
_INK, _QUIET, _PAPER = (26, 29, 35), (84, 91, 103), (255, 255, 255)


@dataclass(frozen=True)
class ContactSheet:
    """A picture that a notebook shows; `save` writes it.

    Attributes:
        image: of Pillow, in colour.
    """

    image: PIL.Image.Image

    def _repr_png_(self) -> bytes:
        return png(self.image)

    def save(self, path: str | Path) -> None:
        """Write it as PNG. Raises `BadInput` where nothing can be written there."""
        try:
            write_whole(Path(path), png(self.image))
        except OSError as error:
            raise BadInput(f"cannot write {path} ({error.strerror}): give another file") from error


def contact_sheet(record: Record, seen: Seen) -> ContactSheet:
    """Of each kind (broken, survived, clean-wrong) the first eight images of a record: clean,
    attacked, and the change, with what the defense answered.

    Pixels are rounded to the nearest of 256 levels, and pictures enlarged by a whole number.
    Raises `BadInput` where no image can be shown.
    """
    if not seen.which:
        raise BadInput(" ".join(seen.notes).rstrip(".") or "this record has no images to show")
    every = np.array(kinds(record))
    chosen = [(kind, np.flatnonzero(every == kind)) for kind in KINDS]
    bands = [(kind, places) for kind, places in chosen if len(places)]
    return ContactSheet(_Drawing(record, seen).drawn(bands))


class _Drawing:
    def __init__(self, record: Record, seen: Seen) -> None:
        self._record, self._seen = record, seen
        _, height, width = seen.shape
        self._scale = max(1, round(_SIDE / width))
        self._cell = max(width * self._scale, _SIDE) + _GAP
        self._tall = height * self._scale
        self._answers = {
            "clean": record.outcomes.predictions("clean"),
            "attacked": record.outcomes.predictions("adversarial"),
        }

    def drawn(self, bands: Sequence[tuple[str, Labels]]) -> PIL.Image.Image:
        titles = self._titles()
        band = _LINE * 2 + len(self._seen.which) * (self._tall + _LINE) + _GAP * 2
        width = 2 * _MARGIN + _NAMES + ACROSS * self._cell
        top = 2 * _MARGIN + len(titles) * (_LINE + 4)
        sheet = PIL.Image.new("RGB", (width, top + len(bands) * band), _PAPER)
        draw = PIL.ImageDraw.Draw(sheet)
        for at, text in enumerate(titles):
            size, ink = (_TITLE, _INK) if at == 0 else (_TEXT, _QUIET)
            place = (_MARGIN, _MARGIN + at * (_LINE + 4))
            draw.text(place, _cut(text, width - 2 * _MARGIN, size), ink, _font(size))
        for at, (kind, places) in enumerate(bands):
            self._band(sheet, draw, top + at * band, kind, places)
        return sheet

    def _titles(self) -> list[str]:
        record, metrics = self._record, self._record.metrics
        draws = len(record.outcomes.clean)
        judged = f"; the majority of {draws} draws decides" if draws > 1 else ""
        clean, robust = metrics.clean.mean, metrics.adversarial.mean
        return [
            f"{defense_label(record)} under {attack_label(record)}",
            f"{heading(record)}, seed {record.title['seed']}",
            f"clean {clean}, under attack {robust}{judged}",
            *self._seen.notes,
        ]

    def _band(
        self,
        sheet: PIL.Image.Image,
        draw: PIL.ImageDraw.ImageDraw,
        top: int,
        kind: str,
        places: Labels,
    ) -> None:
        shown = places[:ACROSS]
        n = self._record.metrics.n
        told = f"{kind}: {len(shown)} of {len(places)}, of {n} images"
        draw.text((_MARGIN, top), told, _INK, _font(_TEXT))
        ids, labels = self._record.outcomes.image_ids(), self._record.outcomes.true_labels()
        for column, place in enumerate(shown):
            left = _MARGIN + _NAMES + column * self._cell
            caption = f"#{ids[place]} is {self._named(int(labels[place]))}"
            self._text(draw, left, top + _LINE, caption, _INK)
        for row, which in enumerate(self._seen.which):
            y = top + 2 * _LINE + row * (self._tall + _LINE)
            name = f"change\nx {self._seen.factor:g}" if which == "change" else which
            draw.text((_MARGIN, y), name, _QUIET, _font(_TEXT))
            for column, place in enumerate(shown):
                left = _MARGIN + _NAMES + column * self._cell
                levels = self._seen.levels(which, int(place), int(place) + 1)[0]
                one = picture(levels).convert("RGB")
                size = (one.width * self._scale, self._tall)
                sheet.paste(one.resize(size, PIL.Image.Resampling.NEAREST), (left, y))
                if which in self._answers:
                    said = self._said(self._answers[which][place])
                    self._text(draw, left, y + self._tall + 1, said, _QUIET)

    def _text(
        self,
        draw: PIL.ImageDraw.ImageDraw,
        left: int,
        top: int,
        text: str,
        ink: tuple[int, int, int],
    ) -> None:
        draw.text((left, top), _cut(text, self._cell - 4, _TEXT), ink, _font(_TEXT))

    def _said(self, answers: Labels) -> str:
        """The answer given most, and in how many draws where not in all."""
        values, counts = np.unique(answers, return_counts=True)
        most = int(counts.argmax())
        name = self._named(int(values[most]))
        return f"says {name}" if len(values) == 1 else f"{name} ({counts[most]}/{len(answers)})"

    def _named(self, label: int) -> str:
        names = self._seen.class_names
        if label < 0:
            return "nothing"
        known = len(names) == self._record.outcomes.num_classes
        return terminal(names[label]) if known else str(label)


@cache
def _font(size: int) -> PIL.ImageFont.FreeTypeFont:
    """The font that matplotlib brings along."""
    import matplotlib

    return PIL.ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _cut(text: str, width: int, size: int) -> str:
    """A text that is no wider than this many pixels."""
    text = terminal(text)
    long = _font(size).getlength(text)
    if long <= width:
        return text
    kept = math.floor(len(text) * width / long)
    while kept > 1 and _font(size).getlength(f"{text[:kept]}...") > width:
        kept -= 1
    return f"{text[:kept]}..."
