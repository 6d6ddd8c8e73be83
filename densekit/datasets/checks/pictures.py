"""What one picture is: read once, judged by what training would do with it, and remembered in a kilobyte."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from densekit.datasets.checks.result import Fault, refusal
from densekit.datasets.pictures import Pixels, to_rgb
from densekit.errors import ImageError
from densekit.image import Picture, read_image

THUMB = 32  # side of the copy that near duplicates are found by
TURNS = {3: "180 degrees", 6: "90 degrees", 8: "270 degrees"}


@dataclass(frozen=True, eq=False)
class Header:
    """What a file says of itself: mode, stored (height, width), EXIF orientation, whether it lost pixels, palette."""

    mode: str
    size: tuple[int, int]
    orientation: int
    is_lossy: bool
    palette: bytes = b""


@dataclass(frozen=True, eq=False)
class Seen:
    """One readable picture: upright (height, width), channels 1 or 3, digest of the pixels, (32, 32) grey thumbnail."""

    path: Path
    size: tuple[int, int]
    channels: int
    header: Header | None
    digest: bytes
    thumb: Pixels
    faults: tuple[Fault, ...]


def read_header(path: Path) -> Header | None:
    """Returns what the header says; None for a file that Pillow does not know, as a float TIFF."""
    try:
        with warnings.catch_warnings(), Image.open(path) as im:
            warnings.simplefilter("ignore")
            tags: Any = {}
            if im.format != "PNG" or "exif" in im.info:  # without the key Pillow would decode a PNG to look for one
                tags = im.getexif()
            orientation = tags.get(ExifTags.Base.Orientation, 1)
            lossy = im.format in ("JPEG", "MPO") or (im.format == "WEBP" and not _is_lossless_webp(path))
            orientation = orientation if orientation in range(1, 9) else 1
            palette = bytes(im.getpalette() or ()) if im.mode == "P" else b""
            return Header(im.mode, (im.height, im.width), orientation, lossy, palette)
    except Exception:  # damage of any kind; whoever reads the pixels says what
        return None


def look(path: Path, *, reads_alpha: bool = False) -> tuple[Seen, Picture] | Fault:
    """Returns what a picture is together with its pixels, or the fault that keeps it from being read.

    Args:
        path: of a regular file.
        reads_alpha: whether alpha is of use; if not it is worth a warning.
    """
    try:
        picture = read_image(path)
    except ImageError as error:
        return refusal(path, error)
    header = read_header(path)
    faults = []

    def warn(what: str, step: str) -> None:
        faults.append(Fault("mode", path, what, "warning", step))

    if picture.alpha is not None and not reads_alpha and not (picture.alpha == picture.alpha.max()).all():
        warn("has an alpha channel, which is dropped", "put it on a background of your choice")
    if picture.pixels.dtype != np.uint8:
        warn(f"has {picture.pixels.dtype} samples, which are reduced to 8 bits", "convert it yourself to choose how")
    if header and header.mode in ("CMYK", "YCCK"):
        warn("is CMYK, which becomes RGB without its profile", "convert it to RGB with its profile")
    rgb = to_rgb(picture)
    digest = hashlib.sha256(repr(rgb.shape).encode())
    digest.update(rgb.data)
    seen = Seen(
        path,
        (picture.height, picture.width),
        picture.pixels.shape[2],
        header,
        digest.digest(),
        thumbnail(rgb),
        tuple(faults),
    )
    return seen, picture


def thumbnail(rgb: Pixels, side: int = THUMB) -> Pixels:
    """Returns a (side, side) grey copy in which only the coarse content is left."""
    import cv2

    return cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (side, side), interpolation=cv2.INTER_AREA)


def _is_lossless_webp(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    return b"VP8L" in head
