"""What there is to see of a result beside the truth: pictures of one size, (H, W, 3) uint8, by the keys of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.predict.inputs import to_rgb8
from densekit.resize import imresize

Pixels = NDArray[np.uint8]
VOID = (0, 0, 0)  # of pixels that count nowhere
WRONG = (255, 0, 255)
ERROR_GAIN = 4  # of the error map: a difference of 64 shows as the brightest


def views_sr(lr: Pixels, sr: Pixels, hr: Pixels) -> dict[str, Pixels]:
    """Returns "lr", which alone is smaller, "bicubic", "sr", "hr" and a map of the "error".

    Args:
        lr: (H, W, 1 or 3).
        sr: (scale H, scale W, as many).
        hr: likewise.
    """
    shown = {"lr": lr, "bicubic": imresize(lr, sr.shape[0] // lr.shape[0]), "sr": sr, "hr": hr}
    return {**{key: to_rgb8(pixels) for key, pixels in shown.items()}, "error": error_map(sr, hr)}


def error_map(sr: Pixels, hr: Pixels) -> Pixels:
    """Returns each pixel's largest difference as a colour, (H, W, 3): black where there is none, yellow from 64 on."""
    import cv2

    difference = np.abs(sr.astype(np.int16) - hr).max(axis=2)
    colours = cv2.applyColorMap((difference * ERROR_GAIN).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(colours[..., ::-1])


def views_seg(
    image: Pixels | None,
    ids: NDArray[Any],
    target: NDArray[Any],
    palette: Sequence[tuple[int, int, int]],
    ignore_index: int,
) -> dict[str, Pixels]:
    """Returns "image", if there is one, "prediction", "target" and the "wrong" pixels.

    Args:
        image: (H, W, 3).
        ids: (H, W), predicted classes.
        target: (H, W), true ones.
        palette: the colour of each class.
        ignore_index: label in `target` that counts nowhere.
    """
    ids, target = ids.astype(np.int64), target.astype(np.int64)
    colours = np.full((max(len(palette), 256) + 1, 3), VOID, np.uint8)
    colours[: len(palette)] = palette
    void = target == ignore_index
    shown = {"prediction": colours[ids], "target": np.where(void[..., None], VOID, colours[target.clip(0, 256)])}
    wrong = np.full((*target.shape, 3), 255, np.uint8) if image is None else image // 3
    wrong[(ids != target) & ~void] = WRONG
    parts = {"image": image, **shown, "wrong": wrong}
    return {key: np.asarray(pixels, np.uint8) for key, pixels in parts.items() if pixels is not None}
