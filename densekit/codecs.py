"""The formats that no one library reads and writes rightly: 16-bit PNG, 16-bit and float TIFF, EXIF between formats.

Bytes <-> samples (H, W, S) in native depth: grey (S 1), grey and alpha (2), RGB (3) or RGBA (4).

- OpenCV reads 16-bit PNG and compressed TIFF; it loses ICC profiles and EXIF, and has no grey with alpha.
- tifffile reads uncompressed TIFF of any layout; it sets no bound on what a packed strip may grow to.
- Pillow cuts 16-bit RGB to 8 bits, but it lays out the directories of tags that EXIF and TIFF are made of.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, TiffTags

from densekit.errors import ImageError

Array: TypeAlias = NDArray[Any]

STRIP = 2**20  # pixels that are converted at once
MAX_TIFF = 2**32 - 2**24  # bytes of samples; the rest is for the directory before them
_TIFF, _BIG_TIFF = b"II*\0" + bytes(4), b"II+\0\x08" + bytes(11)  # headers, both little-endian

# The tags of a TIFF directory that describe the picture; the others are the layout of that one file.
_DESCRIPTIVE = {270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 18246, 33432, 34665, 34853, *range(40091, 40096)}


def samples_of(im: Image.Image, mode: str) -> Array:
    """Returns the pixels of a Pillow image as (H, W, S) uint8 in a mode of 8-bit samples.

    They are converted a strip at a time: NumPy takes three times an image's bytes for the whole at once.
    """
    samples = np.empty((im.height, im.width, len(mode)), np.uint8)
    step = max(1, STRIP // im.width)
    for top in range(0, im.height, step):
        strip = im.crop((0, top, im.width, min(top + step, im.height))).convert(mode)
        samples[top : top + step] = np.asarray(strip).reshape(strip.height, im.width, -1)
    return samples


def decode_png16(data: bytes, *, is_grey: bool, transparent: object) -> tuple[Array, bytes]:
    """Returns the uint16 samples of a 16-bit PNG, and its EXIF block (empty without one), which is not applied.

    Args:
        data: the whole file.
        is_grey: its colour type is grey, or grey and alpha; OpenCV returns the latter as RGBA.
        transparent: the grey value that stands for alpha 0, which OpenCV leaves out; it applies a transparent RGB.

    Raises:
        ValueError: a truncated file or a damaged chunk.
    """
    # Every chunk is checked first: libpng would print what is damaged on stderr.
    exif = b"".join(body for name, body in _png_chunks(data) if name == b"eXIf")
    samples = _decode_with_opencv(data)
    if is_grey and samples.shape[2] == 4:
        samples = samples[..., [0, 3]]
    elif is_grey and isinstance(transparent, int):
        samples = np.dstack((samples, np.where(samples == transparent, 0, 65_535).astype(np.uint16)))
    return samples, exif


def decode_deep_tiff(
    file: BinaryIO, check_header: Callable[[int, int, bool], None]
) -> tuple[Array, bytes | None, bool]:
    """Returns the uint16 or float samples of a TIFF, its ICC profile, and whether they are upright.

    OpenCV applies a TIFF's orientation by itself, tifffile does not.

    Args:
        file: at any position.
        check_header: called with width, height and "has several pages" before anything is decoded; may raise.

    Raises:
        ImageError: a layout that neither decoder reads rightly. Other exceptions: a damaged file.
    """
    import tifffile

    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        check_header(page.imagewidth, page.imagelength, len(tiff.pages) > 1)
        dtype, bits, count = np.dtype(page.dtype or "V"), page.bitspersample, page.samplesperpixel
        # A number that TIFF does not define stays an int, without a name.
        colour, packing, *extra = (
            getattr(code, "name", str(code)) for code in (page.photometric, page.compression, *page.extrasamples)
        )
        is_packed = packing != "NONE"
        is_known = (
            dtype.name in ("uint16", "float16", "float32", "float64")
            and bits == 8 * dtype.itemsize
            and page.imagedepth == 1
            and (colour, count - len(extra)) in (("MINISBLACK", 1), ("RGB", 3))
            and extra in ([], ["UNSPECIFIED"], ["UNASSALPHA"])
        )
        if is_packed:  # what OpenCV decodes wrongly or not at all
            is_known &= count != 2 and dtype.name != "float16" and (count == 1 or page.planarconfig == 1)
        if not is_known:
            found = " ".join([f"{count} x {bits}-bit {dtype.name} {colour}", *extra, packing])
            raise ImageError(
                f"a TIFF of {found}; expected 16-bit unsigned or float samples, grey with black as 0 or RGB, "
                "alpha not premultiplied; convert it to uncompressed RGB or to 16-bit PNG"
            )
        if is_packed:
            file.seek(0)
            samples = _decode_with_opencv(file.read())
        else:
            samples = page.asarray(maxworkers=1)
            samples = np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples
            samples = samples.reshape(page.imagelength, page.imagewidth, count)
        if samples.dtype != dtype or samples.shape[2] != count:
            raise ValueError(f"{samples.shape[2]} {samples.dtype} samples a pixel, but the header says {count} {dtype}")
        return samples.astype(dtype.newbyteorder("="), copy=False), page.iccprofile, is_packed


def encode_png16(samples: Array, icc: bytes | None, exif: bytes | None) -> bytes:
    """Returns a PNG of uint16 samples; Pillow writes only grey so, OpenCV no metadata and no grey with alpha."""
    height, width, count = samples.shape
    rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.full((height, 1 + rows.shape[1]), 2, np.uint8)  # filter 2, "up": each byte less the one above it
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    # Run lengths alone, as the low bytes are noise: time and size of OpenCV's PNG; level 4 takes 3 times as long.
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    packed = packer.compress(filtered.data) + packer.flush()
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[count]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", packed[start : start + 2**30]) for start in range(0, len(packed), 2**30)]
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in [*chunks, (b"IEND", b"")]:
        parts += [struct.pack(">I4s", len(body), name), body, struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))]
    return b"".join(parts)


def encode_tiff(samples: Array, icc: bytes | None, exif: bytes | None) -> bytes:
    """Returns an uncompressed TIFF of uint8, uint16 or float32 samples, the EXIF block as tags of its own directory."""
    little = samples.astype(samples.dtype.newbyteorder("<"), copy=False)
    return tiff_head(samples.shape, samples.dtype, icc, exif) + little.tobytes()


def tiff_head(shape: tuple[int, ...], dtype: np.dtype[Any], icc: bytes | None, exif: bytes | None) -> bytes:
    """Returns the header and directory of an uncompressed TIFF; the samples (H, W, S), little-endian, come behind them.

    What 32-bit offsets cannot reach makes it a BigTIFF.
    """
    height, width, count = shape
    num_bytes = math.prod(shape) * dtype.itemsize
    is_big = num_bytes > MAX_TIFF
    tags = TiffImagePlugin.ImageFileDirectory_v2(_BIG_TIFF if is_big else _TIFF)
    if is_big:
        for tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS):
            tags.tagtype[tag] = TiffTags.LONG8
    if exif:
        block = Image.Exif()
        block.load(exif)
        _copy_tags(block, tags, _DESCRIPTIVE & set(block))
    tags[TiffImagePlugin.IMAGEWIDTH] = width
    tags[TiffImagePlugin.IMAGELENGTH] = height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (8 * dtype.itemsize,) * count
    tags[TiffImagePlugin.COMPRESSION] = 1
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 2 if count > 2 else 1
    tags[TiffImagePlugin.STRIPOFFSETS] = 0  # from the end of the directory: Pillow adds its size
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = count
    tags[TiffImagePlugin.ROWSPERSTRIP] = height
    tags[TiffImagePlugin.STRIPBYTECOUNTS] = num_bytes
    tags[TiffImagePlugin.SAMPLEFORMAT] = (3 if dtype.kind == "f" else 1,) * count
    if count in (2, 4):
        tags[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha, not premultiplied
    if icc:
        tags[TiffImagePlugin.ICCPROFILE] = icc
    buffer = io.BytesIO()
    tags.save(buffer)
    return buffer.getvalue()


def clean_exif(tags: Image.Exif, *, is_tiff: bool) -> bytes | None:
    """Returns the tags of an upright picture as an EXIF block: orientation 1, no thumbnail, no TIFF layout."""
    kept = Image.Exif()  # whose bytes hold no thumbnail directory
    _copy_tags(tags, kept, _DESCRIPTIVE & set(tags) if is_tiff else set(tags))
    if ExifTags.Base.Orientation in kept:
        kept[ExifTags.Base.Orientation] = 1
    return kept.tobytes() if kept else None


def tiff_tags(file: BinaryIO) -> Image.Exif:
    """Returns the tags of a TIFF that Pillow cannot open as an image."""
    tags = Image.Exif()
    file.seek(0)
    tags.load_from_fp(file)
    return tags


def upright(array: Array, orientation: object) -> Array:
    """Returns (H, W, ...) turned and mirrored as an EXIF orientation 1..8 says; anything else turns nothing."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _copy_tags(
    source: Image.Exif, target: Image.Exif | TiffImagePlugin.ImageFileDirectory_v2, wanted: set[int]
) -> None:
    for tag in wanted:
        if tag in (
            ExifTags.IFD.Exif,
            ExifTags.IFD.GPSInfo,
        ):
            directory = source.get_ifd(tag)  # less the directory below it, which would keep its old offset
            target[tag] = {key: value for key, value in directory.items() if key != ExifTags.IFD.Interop}
        else:
            target[tag] = source[tag]


def _decode_with_opencv(data: bytes) -> Array:
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**30))  # read once, at the first import
    import cv2

    cv2.utils.logging.setLogLevel(0)  # a failure is an exception here, not three lines on stderr
    samples: Array | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise ValueError("damaged pixels")
    samples = samples.reshape(*samples.shape[:2], -1)
    return samples[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[samples.shape[2]]]


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position, name = 8, b""
    while name != b"IEND":
        if position + 12 > len(data):
            raise ValueError(f"truncated at byte {len(data)}")
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise ValueError(f"truncated at byte {len(data)}")
        body = data[position + 8 : end - 4]
        if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(data[end - 4 : end]):
            raise ValueError(f"damaged between bytes {position} and {end}")
        yield name, body
        position = end
