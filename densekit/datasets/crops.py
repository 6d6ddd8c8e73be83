"""Where a crop lies that is to show a class: around one of its pixels, all of them alike in probability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from densekit.datasets.pictures import Pixels
from densekit.losses import IGNORE


def find_corner(
    mask: Pixels, size: int, rng: np.random.Generator, classes: Sequence[int] | None = None
) -> tuple[int, int] | None:
    """Returns (top, left) of a crop that holds a wanted pixel; None where the mask has none.

    A class is drawn from those in the mask with equal probability, then one of its pixels, then one of the crops that
    hold it. Exact, and without a list of the pixels: 1 ms for 3 Mpx, of which a list alone takes 15 ms.

    Args:
        mask: class numbers (H, W) uint8, void as 255; no side smaller than `size`.
        size: side of the crop in pixels.
        rng: what is drawn from.
        classes: that are wanted, whether or not they are in the mask; None: all but 0, as if they were one.
    """
    pixel = None
    if classes is None:
        pixel = _draw_pixel(mask - np.uint8(1) < IGNORE - 1, rng)  # 0 wraps round to 255
    else:
        for label in rng.permutation(classes):  # the first that is there: each of those is it as often as the others
            pixel = _draw_pixel(mask == label, rng)
            if pixel is not None:
                break
    if pixel is None:
        return None
    top, left = (
        int(rng.integers(max(0, place - size + 1), min(place, side - size) + 1))
        for place, side in zip(pixel, mask.shape, strict=True)
    )
    return top, left


def _draw_pixel(wanted: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int] | None:
    """Returns (row, column) of one of the true pixels; None without any."""
    import cv2

    rows = cv2.reduce(wanted.view(np.uint8), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
    ends = rows.cumsum(dtype=np.int64)
    if not ends[-1]:
        return None
    number = rng.integers(ends[-1])
    row = int(np.searchsorted(ends, number, side="right"))
    column = np.flatnonzero(wanted[row])[number - ends[row] + rows[row]]
    return row, int(column)
