"""Pixels come into 8 bits as told, and out of a PNG as they went in."""

import io

import numpy as np
import PIL.Image
import pytest

from bench.report.pictures.levels import (
    change_levels,
    columns_of,
    factor_for,
    png,
    sheet,
    tiles_of,
    to_levels,
)


def test_levels_are_the_nearest_and_what_is_outside_is_cut():
    given = np.array([0, 1, 0.5, 1.49 / 255, 1.51 / 255, -3, 7, np.nan], dtype=np.float32)
    assert to_levels(given).tolist() == [0, 255, 128, 1, 2, 0, 255, 0]


@pytest.mark.parametrize(("largest", "factor"), [(0.1, 4.9), (8 / 255, 15), (1.0, 0.49), (0, 1)])
def test_the_factor_that_is_told_uses_the_levels_and_leaves_none(largest, factor):
    change = np.array([-largest, 0, largest / 2], dtype=np.float64)
    assert factor_for(change) == pytest.approx(factor)
    levels = change_levels(change, factor)
    assert levels[1] == 128
    assert int(levels[0]) - 128 == pytest.approx(-255 * factor * largest, abs=0.5)
    assert int(levels[2]) - 128 == pytest.approx(255 * factor * largest / 2, abs=0.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_holds_each_picture_at_its_place(channels):
    given = np.random.default_rng(0).integers(0, 256, (13, channels, 5, 7), dtype=np.uint8)
    with PIL.Image.open(io.BytesIO(png(sheet(given)))) as image:
        pixels = np.asarray(image).reshape(image.height, image.width, channels)
    columns = columns_of(tiles_of((channels, 5, 7)))
    for at, one in enumerate(given):
        row, column = divmod(at, columns)
        place = pixels[row * 5 : row * 5 + 5, column * 7 : column * 7 + 7]
        assert (place.transpose(2, 0, 1) == one).all()


def test_large_pictures_share_a_sheet_with_fewer():
    assert tiles_of((3, 32, 32)) == 100
    assert tiles_of((3, 224, 224)) == 39
    assert tiles_of((3, 9000, 9000)) == 1
