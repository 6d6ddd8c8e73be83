from __future__ import annotations

import numpy as np
import pytest

from densekit.errors import ConfigError
from densekit.image import Picture
from densekit.predict.compare import COLUMN, CROP, FRAME, GAP, LINE, compare
from densekit.resize import imresize

SIDE = (3 * COLUMN + GAP) // 2


def photograph(height: int, width: int) -> np.ndarray:
    """A flat image with two places of noise: 40 pixels from the left edge, and weaker ones 40 from the right."""
    rng = np.random.default_rng(5)
    pixels = np.full((height, width, 3), 90, np.uint8)
    pixels[10:42, 40:72] = rng.integers(0, 256, (32, 32, 3))
    pixels[10:42, -72:-40] = rng.integers(60, 120, (32, 32, 3))
    return pixels


def enlarged(pixels: np.ndarray, scale: int) -> np.ndarray:
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def test_the_crops_are_where_the_detail_is():
    pixels = photograph(100, 200)
    sheet = compare(Picture(pixels), Picture(enlarged(pixels, 2)), 2)
    top = LINE + SIDE // 2 + GAP
    for corner in (40, 200 - 72):
        top += LINE
        crop = pixels[10:42, corner : corner + 32]
        for column, expected in enumerate((crop, imresize(pixels, 2)[20:84, 2 * corner : 2 * corner + 64], crop)):
            left = GAP + column * (COLUMN + GAP)
            cell = sheet[top : top + COLUMN, left : left + COLUMN]
            assert np.array_equal(cell, enlarged(expected, COLUMN // len(expected))), (corner, column)
        top += COLUMN + GAP
    assert sheet.shape == (top, 3 * COLUMN + 4 * GAP, 3)


def test_the_views_show_bicubic_and_the_result_with_the_crops_framed():
    pixels = photograph(290, 290)
    result = np.full((580, 580, 3), 200, np.uint8)
    sheet = compare(Picture(pixels), Picture(result), 2)
    left, right = (sheet[LINE : LINE + SIDE, x : x + SIDE] for x in (GAP, 2 * GAP + SIDE))
    framed = (right == FRAME).all(axis=2)
    assert framed.any()
    assert (right[~framed] == 200).all()
    assert np.array_equal(left[~framed], imresize(pixels, 2)[~framed])


def test_a_comparison_gives_the_same_bytes_each_time_and_is_of_bounded_size():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (330, 420, 3), np.uint8)
    pictures = Picture(pixels), Picture(enlarged(pixels, 2))
    first = compare(*pictures, 2)
    assert first.shape[0] <= 1444
    assert first.tobytes() == compare(*pictures, 2).tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (90, 1), (CROP, CROP), (33, 70)])
@pytest.mark.parametrize("scale", [2, 3, 8])
def test_small_pictures_of_any_shape_can_be_compared(shape, scale):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    sheet = compare(Picture(pixels), Picture(enlarged(pixels, scale)), scale)
    assert sheet.shape[1:] == (3 * COLUMN + 4 * GAP, 3)


def test_deep_and_grey_pictures_are_shown_in_8_bits():
    grey = photograph(60, 160)[..., :1]
    deep = grey.astype(np.uint16) * 257
    shown = compare(Picture(deep), Picture(enlarged(deep, 2)), 2)
    assert np.array_equal(shown, compare(Picture(grey), Picture(enlarged(grey, 2)), 2))


def test_sizes_that_do_not_fit_are_one_line():
    before, after = (Picture(np.full((4, 6, 3), 9, np.uint8)), Picture(np.full((8, 13, 3), 9, np.uint8)))
    with pytest.raises(ConfigError, match=r"^a result of 13x8 for 6x4 at scale 2; expected 12x8$"):
        compare(before, after, 2)
