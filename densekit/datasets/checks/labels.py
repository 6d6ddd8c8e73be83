"""What one mask holds: its labels and their pixels, fast enough that a data set is judged whole, not by samples."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.datasets.checks.pictures import Header, read_header
from densekit.datasets.checks.result import Fault, refusal
from densekit.datasets.class_map import ClassMap, Color, count_colors, describe_unknown, read_colors
from densekit.datasets.pictures import to_rgb
from densekit.errors import DataError, ImageError
from densekit.image import MAX_PIXELS, read_image, read_mask

Ids = NDArray[Any]
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, eq=False)
class Labels:
    """What one mask holds.

    Attributes:
        path: of the file.
        size: upright (height, width).
        values: its labels, ascending.
        pixels: of each label.
        between: the share of label changes along a row that pass through a number in between: about 0 for drawn
            masks, 1/3 and more for interpolated ones and ones that were JPEG.
        header: None for an 8-bit PNG that was read the short way: stored upright, mode L or P, lossless.
        palette: the colours of the labels' numbers where the file has some.
    """

    path: Path
    size: tuple[int, int]
    values: NDArray[np.int64]
    pixels: NDArray[np.int64]
    between: float
    header: Header | None = None
    palette: bytes = b""


@dataclass(frozen=True, eq=False)
class Colored:
    """A mask in colours that have no class: the fault it is, and those colours by falling number of pixels."""

    path: Path
    size: tuple[int, int]
    fault: Fault
    colors: dict[Color, int] = field(default_factory=dict)


def scan_mask(path: Path, class_map: ClassMap | None = None) -> Labels | Colored | Fault:
    """Returns the labels of a mask file, the colours that have none, or the fault that keeps it unread.

    With a class map the file is read as colours, otherwise as class numbers.
    """
    if class_map:
        return _scan_colors(path, class_map)
    try:
        data = path.read_bytes() if path.stat().st_size < 2**26 else b""
    except OSError:
        data = b""  # the long way says why
    short = _plain_png_ids(data)
    if short is not None:
        ids, palette = short
        return _labels(path, ids, None, palette)
    header = read_header(path)
    try:
        return _labels(path, read_mask(path), header, header.palette if header else b"")
    except ImageError as error:
        fault = refusal(path, error)
        return _colors(path, fault) if fault.kind == "colour-mask" else fault


def _labels(path: Path, ids: Ids, header: Header | None, palette: bytes = b"") -> Labels:
    flat = ids.ravel()  # a mask is runs of one label: finding those is faster than a histogram
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
    runs, lengths = flat[ends], np.empty_like(ends)
    lengths[0] = ends[0] + 1
    np.subtract(ends[1:], ends[:-1], out=lengths[1:])
    if runs.dtype == np.uint8:
        counts = np.bincount(runs, lengths, 256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, places = np.unique(runs, return_inverse=True)
        counts = np.bincount(places, lengths)
    between = _share_between(runs, lengths) if len(values) > 2 else 0.0
    size = (ids.shape[0], ids.shape[1])
    return Labels(path, size, values.astype(np.int64), counts.astype(np.int64), between, header, palette)


def _share_between(runs: Ids, lengths: NDArray[np.int64]) -> float:
    """Returns the share of runs of one pixel whose number lies between those of the runs beside them, 0 to 1."""
    if len(runs) < 64:  # too few to tell
        return 0.0
    left, middle, right = runs[:-2], runs[1:-1], runs[2:]
    rising, falling = (left < middle) & (middle < right), (left > middle) & (middle > right)
    return np.count_nonzero((rising | falling) & (lengths[1:-1] == 1)) / len(runs)


def _plain_png_ids(data: bytes) -> tuple[Ids, bytes] | None:
    """Returns ids (H, W) uint8 and palette of an 8-bit grey or palette PNG without EXIF or frames, else None.

    Eight times as fast as `read_mask`, which is asked about everything else: kornia's decoder takes a third of OpenCV's
    time. It would turn palettes into colours, so the file is handed to it as the grey one it is but for its header.
    """
    if data[:8] != _SIGNATURE or data[24:29] not in (b"\x08\x00\x00\x00\x00", b"\x08\x03\x00\x00\x00"):
        return None  # bytes 24 to 28: depth, colour type, compression, filter, interlace
    width, height = struct.unpack_from(">II", data, 16)
    if not 0 < width * height <= MAX_PIXELS:
        return None
    palette, parts = b"", [_SIGNATURE]
    try:
        for name, body, chunk in _chunks(data):
            if name in (b"eXIf", b"acTL"):
                return None
            if name == b"IHDR" and body[9]:
                body = body[:9] + b"\0" + body[10:]
                parts.append(struct.pack(">I4s13sI", 13, name, body, zlib.crc32(name + body)))
            elif name in (b"IHDR", b"IDAT", b"IEND"):
                parts.append(chunk)
            elif name == b"PLTE":
                palette = body
    except ValueError:
        return None
    from kornia_rs.io import decode_image_png_u8

    try:
        ids = decode_image_png_u8(b"".join(parts), (height, width), "mono")
    except Exception:  # it raises no narrower kind; the long way says what is wrong
        return None
    return (ids[..., 0], palette) if ids.shape == (height, width, 1) and ids.dtype == np.uint8 else None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yields (name, body, whole chunk) of a PNG, each checked; ValueError where one is damaged or the file ends."""
    position, name = 8, b""
    while name != b"IEND":
        if position + 12 > len(data):
            raise ValueError("truncated")
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data) or zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise ValueError("damaged")
        yield name, data[position + 8 : end - 4], data[position:end]
        position = end


def _colors(path: Path, fault: Fault) -> Colored | Fault:
    """Returns the colours of a mask that is no picture of numbers."""
    try:
        picture = read_image(path)
    except ImageError as error:
        return refusal(path, error)
    return Colored(path, (picture.height, picture.width), fault, count_colors(to_rgb(picture)))


def _scan_colors(path: Path, class_map: ClassMap) -> Labels | Colored | Fault:
    """Returns the labels of a mask in colours, or those colours that the map lacks."""
    try:
        rgb = read_colors(path)
    except DataError as error:
        return refusal(path, error)
    found = class_map.look_up(rgb)
    unknown = found == 0
    if unknown.any():
        message, _, step = describe_unknown(rgb[unknown]).rpartition("; ")
        fault = Fault("unmapped-colour", path, message, "error", step)
        return Colored(path, found.shape, fault, count_colors(rgb[unknown]))
    return _labels(path, (found - 1).astype(np.uint8), read_header(path))
