"""Pixels into 8 bits, and 8 bits into PNG."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
import PIL.Image

Levels = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.floating]

GREY = 128
"""The level of a pixel that an attack left as it was, in the picture of the change."""

_MOST = 127
_TILES, _SHEET_PIXELS = 100, 2_000_000


def to_levels(pixels: Pixels) -> Levels:
    """The nearest of 256 levels, of pixels in [0, 1]; what lies outside is cut off, NaN is 0."""
    scaled = np.nan_to_num(pixels.astype(np.float64), nan=0.0) * 255
    return np.clip(scaled.round(), 0, 255).astype(np.uint8)


def factor_for(change: Pixels) -> float:
    """By what a change (n, C, H, W) is multiplied so that its largest entry is seen best: at most
    half of the levels, cut down to two digits, so that what is told is what was done.
    """
    largest = float(np.abs(change).max(initial=0.0))
    if not 0 < largest < math.inf:
        return 1.0
    exact = _MOST / (255 * largest)
    digits = 10.0 ** (1 - math.floor(math.log10(exact)))
    return math.floor(exact * digits) / digits


def change_levels(change: Pixels, factor: float) -> Levels:
    """Grey where nothing changed, brighter where a pixel was raised: GREY + 255 * factor *
    change.
    """
    levels = GREY + (255 * factor * change.astype(np.float64)).round()
    return np.clip(levels, 0, 255).astype(np.uint8)


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether (C, H, W) is a picture: grey or in colour."""
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape) > 0


def picture(levels: Levels) -> PIL.Image.Image:
    """Of (C, H, W), C 1 or 3."""
    plane = levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)
    return PIL.Image.fromarray(np.ascontiguousarray(plane))


def png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def tiles_of(shape: tuple[int, ...]) -> int:
    """How many pictures (C, H, W) go onto one sheet: a hundred, fewer large ones."""
    return max(1, min(_TILES, _SHEET_PIXELS // (shape[1] * shape[2])))


def columns_of(tiles: int) -> int:
    """How many of a sheet's pictures stand side by side."""
    return math.ceil(math.sqrt(tiles))


def sheet(levels: Levels) -> PIL.Image.Image:
    """Pictures (n, C, H, W) of `tiles_of` or fewer as one, row by row; what is left over is
    black.
    """
    n, channels, height, width = levels.shape
    columns = columns_of(tiles_of(levels.shape[1:]))
    rows = math.ceil(n / columns)
    grid = np.zeros((channels, rows * height, columns * width), dtype=np.uint8)
    for at, one in enumerate(levels):
        row, column = divmod(at, columns)
        grid[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = one
    return picture(grid)
