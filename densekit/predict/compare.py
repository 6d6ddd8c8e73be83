"""A result beside what plain interpolation makes of the same image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from densekit.errors import ConfigError
from densekit.image import Picture
from densekit.predict.inputs import to_rgb8
from densekit.resize import imresize

CROP = 32  # input pixels, side of a crop
NUM_CROPS = 2
COLUMN = 384  # pixels on the sheet: 12 times a crop, so that a pixel of the result at x2, x3 or x4 is 6, 4 or 3
GAP, LINE = 8, 24
PAPER, INK, FRAME = (255, 255, 255), (32, 32, 32), (255, 0, 255)  # magenta is rare in photographs


class _Box(NamedTuple):
    top: int
    left: int
    height: int
    width: int


class Cell(NamedTuple):
    """A picture on a sheet, and what it is called there."""

    label: str
    image: Image.Image


def compare(before: Picture, after: Picture, scale: int) -> NDArray[np.uint8]:
    """Returns one labelled picture of an input and its enlargement; equal inputs give equal bytes.

    On top stand the bicubic enlargement and the result, fitted into the sheet; below, through a lens, the input
    (nearest), bicubic and the result at up to two places, those with the most local detail. Alpha is ignored.

    Args:
        before: the input.
        after: the result, `scale` times as high and wide.
        scale: output pixels per input pixel.

    Returns: (H', 1184, 3) uint8, H' at most 1444.

    Raises:
        ConfigError: pictures whose sizes do not fit together.
    """
    expected = (before.width * scale, before.height * scale)
    if (after.width, after.height) != expected:
        raise ConfigError(
            f"a result of {after.width}x{after.height} for {before.width}x{before.height} at scale {scale}; "
            f"expected {expected[0]}x{expected[1]}"
        )
    low, high = to_rgb8(before.pixels), to_rgb8(after.pixels)
    plain = imresize(low, scale)
    result = f"result x{scale}"
    boxes = _find_detail(low)

    side = (3 * COLUMN + GAP) // 2
    rows = [[Cell("bicubic", _fit(plain, side)), Cell(result, _fit(high, side))]]
    for cell in rows[0]:
        draw, factor = ImageDraw.Draw(cell.image), cell.image.width / before.width
        for top, left, height, width in boxes:
            corners = (left, top, left + width, top + height)
            draw.rectangle([round(factor * corner) for corner in corners], outline=FRAME, width=2)
    for box in boxes:
        crops = (("input", low, 1), ("bicubic", plain, scale), (result, high, scale))
        rows.append([Cell(label, _fit(_cut(image, box, factor), COLUMN)) for label, image, factor in crops])
    return sheet(rows, 3 * COLUMN + 4 * GAP)


def _find_detail(image: NDArray[np.uint8]) -> list[_Box]:
    """Returns disjoint boxes of at most `CROP` a side with the largest sums of differences between neighbours."""
    light = image.astype(np.float32).mean(axis=2)
    detail = np.zeros((light.shape[0] + 1, light.shape[1] + 1))
    detail[2:, 1:] += np.abs(np.diff(light, axis=0))
    detail[1:, 2:] += np.abs(np.diff(light, axis=1))
    table = detail.cumsum(axis=0).cumsum(axis=1)
    height, width = min(CROP, light.shape[0]), min(CROP, light.shape[1])
    sums = table[height:, width:] - table[:-height, width:] - table[height:, :-width] + table[:-height, :-width]
    boxes: list[_Box] = []
    while len(boxes) < NUM_CROPS and sums.max() > -np.inf:
        top, left = (int(i) for i in np.unravel_index(sums.argmax(), sums.shape))
        boxes.append(_Box(top, left, height, width))
        sums[max(0, top - height + 1) : top + height, max(0, left - width + 1) : left + width] = -np.inf
    return boxes


def _cut(image: NDArray[np.uint8], box: _Box, factor: int) -> NDArray[np.uint8]:
    top, left, height, width = (factor * value for value in box)
    return image[top : top + height, left : left + width]


def _fit(image: NDArray[np.uint8], side: int) -> Image.Image:
    """Returns the image as large as fits a square: pixels show when it grows, and are averaged when it shrinks."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(factor * width)), max(1, round(factor * height)))
    return Image.fromarray(image).resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS)


def sheet(rows: list[list[Cell]], width: int) -> NDArray[np.uint8]:
    """Returns rows of labelled pictures on white paper, (H, width, 3); those of a row have equal columns."""
    font = ImageFont.load_default(LINE * 2 // 3)
    heights = [LINE + max(cell.image.height for cell in row) + GAP for row in rows]
    paper = Image.new("RGB", (width, sum(heights)), PAPER)
    draw = ImageDraw.Draw(paper)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for index, cell in enumerate(row):
            left = GAP + index * (width - GAP) // len(row)
            draw.text((left, top + LINE // 2), cell.label, fill=INK, font=font, anchor="lm")
            paper.paste(cell.image, (left, top + LINE))
        top += height
    return np.array(paper)
