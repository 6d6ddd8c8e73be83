"""Pictures small enough for a report: crops where the error is, thumbnails, WebP as data: URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from densekit.errors import DensekitError, Interrupted
from densekit.report.evaluation import Pictures, Row

# Sizes in pixels, (width, height). 7 crops of 5 pictures and 100 rows of 2 thumbnails stay below 5 MB as base64.
CROP = {"sr": (256, 192), "seg": (512, 384)}
THUMBNAIL = (96, 72)
PLACE = (256, 192)
MAX_BYTES = 80_000  # of one picture of a crop

# What can be compared, the pair shown first, and the map of what is wrong.
SIDES: dict[str, tuple[str, ...]] = {"sr": ("lr", "bicubic", "sr", "hr"), "seg": ("image", "prediction", "target")}
PAIR = {"sr": ("bicubic", "sr"), "seg": ("prediction", "target")}
TRUTH = {"sr": ("sr", "hr"), "seg": ("prediction", "target")}
MAP = {"sr": "error", "seg": "wrong"}


@dataclass(frozen=True)
class Encoded:
    """A picture as text, and whether its pixels are exact."""

    uri: str
    width: int
    height: int
    is_exact: bool


@dataclass(frozen=True)
class Crop:
    """The most telling part of a picture.

    Attributes:
        left, top, width, height: of the crop, in pixels of the whole picture.
        whole: (width, height) of that.
        parts: key -> the crop of that picture.
        place: the whole picture, small, with the crop framed; None where the crop is all of it.
    """

    left: int
    top: int
    width: int
    height: int
    whole: tuple[int, int]
    parts: dict[str, Encoded]
    place: Encoded | None


def load(row: Row) -> Pictures | str:
    """Returns a row's pictures, or in one line why there are none: a report is not lost with a picture."""
    if row.pictures is None:
        return "no pictures were kept"
    try:
        made = row.pictures()
    except Interrupted:
        raise
    except Exception as error:
        cause = str(error) if isinstance(error, DensekitError) else f"{type(error).__name__}: {error}"
        return f"its pictures could not be made again ({cause})"
    sizes = set()
    for key, pixels in made.items():
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            return f"picture {key!r} is {pixels.shape} {pixels.dtype}; expected (H, W, 3) uint8"
        if key != "lr":
            sizes.add(pixels.shape)
    if len(sizes) > 1:
        return f"its pictures have the sizes {sorted(sizes)}; expected one"
    return made if sizes else "no pictures were kept"


def thumbnails(pictures: Pictures, task: str) -> list[tuple[str, Encoded]]:
    """Returns (key, small picture) of what was made, and of the map of what is wrong in it."""
    first = next(key for key in (TRUTH[task][0], *pictures) if key in pictures and key != "lr")
    keys = [first] + [key for key in [MAP[task]] if key in pictures and key != first]
    return [(key, encode(_fit(pictures[key], THUMBNAIL), (75,))) for key in keys]


def crop(pictures: Pictures, task: str) -> Crop:
    """Returns the crop where the result differs most from the truth, in all pictures at the same place."""
    whole = next(pixels for key, pixels in pictures.items() if key != "lr")
    height, width = whole.shape[:2]
    crop_width, crop_height = min(CROP[task][0], width), min(CROP[task][1], height)
    step = _step(pictures, height, width)
    crop_width, crop_height = crop_width - crop_width % step, crop_height - crop_height % step
    ours, truth = TRUTH[task]
    left = top = 0
    if ours in pictures and truth in pictures:
        difference = np.abs(pictures[ours].astype(np.int32) - pictures[truth]).sum(axis=2)
        left, top = _worst_window(difference, crop_width, crop_height, step)
    parts = {}
    for key, pixels in pictures.items():
        scale = step if key == "lr" else 1
        if key == "lr" and (pixels.shape[0] * step, pixels.shape[1] * step) != (height, width):
            continue  # no whole number of its pixels fits the crop, so that it could not be laid over the others
        y, x, h, w = (value // scale for value in (top, left, crop_height, crop_width))
        parts[key] = encode(pixels[y : y + h, x : x + w])
    place = None
    if (crop_width, crop_height) != (width, height):
        place = encode(_framed(pictures.get(truth, whole), left, top, crop_width, crop_height), (80,))
    return Crop(left, top, crop_width, crop_height, (width, height), parts, place)


def encode(pixels: NDArray[np.uint8], qualities: tuple[int, ...] = ()) -> Encoded:
    """Returns a picture as WebP: exact where that takes at most MAX_BYTES, else in the best quality that does.

    With `qualities` it is one of those, and never exact.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    data = b"" if qualities else _webp(image, lossless=True, quality=70, method=0)
    if MAX_BYTES < len(data) <= 1.25 * MAX_BYTES:  # method 4 takes twelve times as long for 14 % fewer bytes
        data = _webp(image, lossless=True, quality=70)
    is_exact = 0 < len(data) <= MAX_BYTES
    if not is_exact:
        for quality in qualities or (92, 85, 75, 60, 45, 30, 15):
            data = _webp(image, quality=quality)
            if len(data) <= MAX_BYTES:
                break
    uri = "data:image/webp;base64," + base64.b64encode(data).decode("ascii")
    return Encoded(uri, image.width, image.height, is_exact)


def _webp(image: Image.Image, *, method: int = 4, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", method=method, **options)
    return buffer.getvalue()


def _step(pictures: Pictures, height: int, width: int) -> int:
    """Returns the scale between "lr" and the rest, which crops must be a multiple of; 1 where there is none."""
    if "lr" not in pictures:
        return 1
    scale = height // pictures["lr"].shape[0]
    fits = (pictures["lr"].shape[0] * scale, pictures["lr"].shape[1] * scale) == (height, width)
    return scale if scale and fits else 1


def _worst_window(difference: NDArray[np.int32], width: int, height: int, step: int) -> tuple[int, int]:
    """Returns (left, top), multiples of `step`, of the window with the largest sum; the first of equals."""
    sums = np.zeros((difference.shape[0] + 1, difference.shape[1] + 1), np.int64)
    sums[1:, 1:] = difference.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    inside = inside[::step, ::step]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(left) * step, int(top) * step


def _fit(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail(size, Image.Resampling.LANCZOS)
    return np.asarray(image)


def _framed(pixels: NDArray[np.uint8], left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    factor = min(PLACE[0] / image.width, PLACE[1] / image.height, 1)
    image.thumbnail(PLACE, Image.Resampling.LANCZOS)
    box = [round(factor * value) for value in (left, top, left + width - 1, top + height - 1)]
    right, bottom = max(box[0], min(box[2], image.width - 1)), max(box[1], min(box[3], image.height - 1))
    draw = ImageDraw.Draw(image)
    draw.rectangle((box[0], box[1], right, bottom), outline=(0, 0, 0), width=3)  # seen on light and on dark pixels
    if right - box[0] > 2 and bottom - box[1] > 2:
        draw.rectangle((box[0] + 1, box[1] + 1, right - 1, bottom - 1), outline=(255, 255, 255))
    return np.asarray(image)
