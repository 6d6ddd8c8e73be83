"""TIFF files that are written while their pixels are made, for results that no memory holds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeAlias

from densekit.codecs import Array, tiff_head
from densekit.files import replacing
from densekit.image import Picture, naming_disk_faults

Place: TypeAlias = Callable[[int, int, Array], None]  # top, left, samples (h, w, S)

SUFFIXES = (".tif", ".tiff")


@contextlib.contextmanager
def open_tiff(path: str | os.PathLike[str], picture: Picture, scale: int) -> Iterator[Place]:
    """Yields a function that puts samples where they belong in a TIFF of `scale` times the sides of a picture.

    The file has the picture's dtype, channels, ICC profile and EXIF, and is there only once the context ends without an
    exception; every pixel is to be put before. Equal to what `write_image` makes of the same pixels, byte for byte.

    Args:
        path: in a folder that exists.
        picture: what is enlarged; alpha is the last of the samples.
        scale: pixels of the file per pixel of the picture.

    Raises:
        ImageError: the disk refuses.
    """
    channels = picture.pixels.shape[2] + (picture.alpha is not None)
    shape = picture.height * scale, picture.width * scale, channels
    dtype = picture.pixels.dtype
    head = tiff_head(shape, dtype, picture.icc, picture.exif)
    step = shape[1] * channels * dtype.itemsize
    with naming_disk_faults(path), replacing(path) as file:
        file.write(head)

        def place(top: int, left: int, samples: Array) -> None:
            start = len(head) + top * step + left * channels * dtype.itemsize
            for row in samples.astype(dtype.newbyteorder("<"), copy=False):
                file.seek(start)
                file.write(row.tobytes())
                start += step

        yield place
