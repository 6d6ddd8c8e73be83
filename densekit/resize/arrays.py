"""The resize of NumPy arrays: two passes of small matrix products over contiguous rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from densekit.resize.rule import TIE, Array, Plan, Taps

SHRINK_BLOCK, GROW_BLOCK = 8, 16  # output rows in one product: more multiply more zeros, fewer cost more calls
PRODUCT = 2**18  # multiplications in one: above it OpenBLAS starts threads, 20 times slower where the cores are busy
TRANSPOSED_BYTES = 32  # a pixel that OpenCV's transpose takes, 5 times faster than NumPy's


def resize_array(image: Array, plan: Plan) -> Array:
    """Returns (H, W) or (H, W, C) `image` resized, in its own dtype.

    The picture lies so that the axis of the pass comes first and all others are one: a product with
    the weights then runs over whole contiguous rows, whatever the number of channels.
    """
    integer = image.dtype.kind == "u"
    between = image.dtype if integer and plan.each_pass else np.dtype(np.float64)
    pixels = np.ascontiguousarray(image.reshape(*image.shape[:2], -1))
    for axis, dtype in zip(plan.order, (between, image.dtype), strict=True):
        if axis == 1:
            pixels = _transpose(pixels)
        rows = _resize_rows(pixels.reshape(len(pixels), -1), plan.taps[axis], dtype)
        pixels = rows.reshape(len(rows), *pixels.shape[1:])
        if axis == 1:
            pixels = _transpose(pixels)
    return pixels.reshape(*plan.size, *image.shape[2:])


def _transpose(pixels: Array) -> Array:
    """Returns (A, B, C) as (B, A, C), contiguous."""
    import cv2

    if pixels.shape[2] <= 4 and pixels.shape[2] * pixels.itemsize <= TRANSPOSED_BYTES:
        transposed: Array = cv2.transpose(pixels)
        return transposed.reshape(pixels.shape[1], pixels.shape[0], pixels.shape[2])
    return np.ascontiguousarray(pixels.swapaxes(0, 1))


def _resize_rows(rows: Array, taps: Taps, dtype: np.dtype[Any]) -> Array:
    """Returns rows (n, A), resized along n to (m, A); rounded and clipped if `dtype` is an integer's."""
    m, n = taps.lengths
    block = SHRINK_BLOCK if m < n else GROW_BLOCK
    lows, bands = taps.bands(block)
    short = rows.dtype == dtype == np.uint8 and _suits_float32(taps)
    work = np.dtype(np.float32 if short else np.float64)
    # With steps of 2 ** -15 a tie is met exactly; with steps of 1 / 81 there is none.
    half, highest = (0.5, 255.5) if short else (0.5 + TIE, np.iinfo(dtype).max + 0.5 if dtype.kind == "u" else 0)
    bands = bands.astype(work)
    strip = max(1, PRODUCT // (block * bands.shape[2]))
    width = rows.shape[1]
    values = np.empty((block, width), work)
    result = np.empty((m, width), dtype)
    for number, (low, band) in enumerate(zip(lows.tolist(), bands, strict=True)):
        source = rows[low : low + band.shape[1]].astype(work, copy=False)
        for left in range(0, width, strip):
            np.matmul(band, source[:, left : left + strip], out=values[:, left : left + strip])
        if dtype.kind == "u":
            values += half  # half up; np.rint would round half to even, which is not MATLAB's rule
            np.clip(values, 0, highest, out=values)  # nothing is negative then, and the cast is a floor
        target = result[number * block : (number + 1) * block]
        target[:] = values[: len(target)]
    return result


def _suits_float32(taps: Taps) -> bool:
    """Returns whether float32, twice as fast, gives 8-bit values the same bits: at 1/2, 1/3, 1/4, 2, 3, 4, 8.

    With weights in steps of 2 ** -15 every partial sum is exact. In steps of 1 / 81 no sum comes nearer than
    1 / 162 to where rounding turns, and float32 errs by less than 1e-3.
    """
    return any(np.abs(taps.weight * steps - np.rint(taps.weight * steps)).max() < 1e-6 for steps in (2**15, 81))
