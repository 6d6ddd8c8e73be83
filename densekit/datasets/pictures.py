"""Pictures as training sees them, and the weights of classes that follow from their counts; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densekit.datasets.lists import common_root, is_list, read_list
from densekit.errors import DataError
from densekit.files import printable
from densekit.image import Picture, list_images, read_image

Pixels = NDArray[np.uint8]


def read_rgb(path: Path) -> Pixels:
    """Returns a picture as (H, W, 3) uint8, grey replicated, alpha dropped, 16 bit reduced to 8.

    Raises:
        ImageError: it cannot be read.
    """
    return to_rgb(read_image(path))


def to_rgb(picture: Picture) -> Pixels:
    """Returns the pixels of a picture, as `read_rgb` does."""
    pixels = picture.pixels
    if pixels.dtype == np.uint16:
        pixels = (pixels.astype(np.uint32) + 128) // 257
    elif pixels.dtype != np.uint8:
        pixels = np.floor(np.clip(pixels, 0, 1) * 255 + 0.5)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint8))


def list_pictures(folders: Sequence[str | Path]) -> list[Path]:
    """Returns the pictures of several folders or .txt lists, in order.

    Raises:
        DataError: a folder is missing or holds none, or a list cannot be used.
    """
    return [path for folder in folders for path in rooted_pictures(folder)[1]]


def rooted_pictures(folder: str | Path) -> tuple[Path, list[Path]]:
    """Returns the folder that names start from, and the pictures of a folder or .txt list.

    Names start from the folder itself, and of a list from the deepest folder that holds all its pictures.

    Raises:
        DataError: as `list_pictures`.
    """
    if is_list(folder):
        found = read_list(folder)
        return common_root(found), found
    if not Path(folder).is_dir():
        raise DataError(f"{printable(folder)}: no such folder; give one that holds pictures")
    found = list_images(Path(folder))
    if not found:
        raise DataError(f"{printable(folder)}: no pictures (png, jpg, tif, webp, bmp) in this folder")
    return Path(folder), found


def median_frequency_weights(own: NDArray[np.int64], around: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns median(f) / f with f = pixels of a class / all pixels of the images that contain it; absent classes 0.

    Source: Eigen and Fergus (ICCV 2015), section 6.3; void counts into the denominator, as in SegNet's weights.
    """
    present = own > 0
    frequency = own[present] / around[present]
    weights = np.zeros(own.shape)
    if present.any():
        weights[present] = np.median(frequency) / frequency
    return weights
