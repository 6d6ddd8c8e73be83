"""The only reader and writer of pixels: file <-> RGB array, with what the file carried beside its pixels.

Pillow reads headers, 8 bits and less, palettes and CMYK; what it would cut to 8 bits goes through `densekit.codecs`.
Inside this module an ImageError says only the cause; the file's name is put before it once, at the outer boundary.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from densekit import codecs
from densekit.codecs import Array
from densekit.errors import ImageError
from densekit.files import atomic_write, printable

MAX_PIXELS = 178_956_970  # twice Pillow's warning level: the count above which Pillow refuses a file


class _Format(NamedTuple):
    kind: str
    dtypes: tuple[str, ...]
    alpha: bool
    metadata: bool
    max_side: int


_PNG = _Format("PNG", ("uint8", "uint16"), alpha=True, metadata=True, max_side=2**31 - 1)
_JPEG = _Format("JPEG", ("uint8",), alpha=False, metadata=True, max_side=65_500)  # libjpeg's own; the format has 65,535
_TIFF = _Format("TIFF", ("uint8", "uint16", "float32"), alpha=True, metadata=True, max_side=2**31 - 1)
_WEBP = _Format("WEBP", ("uint8",), alpha=True, metadata=True, max_side=16_383)
_BMP = _Format("BMP", ("uint8",), alpha=False, metadata=False, max_side=2**31 - 1)
# fmt: off
_FORMATS = {
    ".png": _PNG, ".jpg": _JPEG, ".jpeg": _JPEG, ".tif": _TIFF, ".tiff": _TIFF, ".webp": _WEBP, ".bmp": _BMP,
}
SUFFIXES = tuple(_FORMATS)

# Pillow's modes and what they become: grey stays grey, everything coloured becomes RGB.
_MODES = {
    "1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBX": "RGB", "RGBA": "RGBA",
    "RGBa": "RGBA", "CMYK": "RGB", "YCbCr": "RGB",
}
# fmt: on
_MASK_DTYPES = {"1": "uint8", "L": "uint8", "P": "uint8", "I;16": "uint16", "I;16B": "uint16", "I": "int32"}
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow stretches 2- and 4-bit grey to 0..255; a mask wants the stored numbers
_PROFILE_CHANNELS = {b"RGB ": 3, b"GRAY": 1, b"CMYK": 4}  # by bytes 16..20 of an ICC profile
_SIGNATURE = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<TIFF>II[*+]\0|MM\0[*+])"
    rb"|(?P<WEBP>RIFF.{4}WEBP)|(?P<BMP>BM)|(?P<GIF>GIF8[79]a)",
    re.DOTALL,
)
_FIRST_FRAME = "take the first one with --first-frame (first_frame=True)"

for _name in ("PIL", "tifffile"):  # what they log as an error is also raised; without a handler it goes to stderr too
    logging.getLogger(_name).addHandler(logging.NullHandler())


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright image and what its file carried.

    Attributes:
        pixels: (H, W, C), C 1 (grey) or 3 (RGB); uint8 0..255, uint16 0..65535, or float32 as stored in the file.
        alpha: (H, W) of the same dtype and range, not premultiplied; None without one.
        icc: the colour profile.
        exif: an EXIF block (b"Exif", two zero bytes and a TIFF directory) with orientation 1 and no thumbnail.
        format: of the file it came from: "PNG", "JPEG", "TIFF", "WEBP", "BMP" or "GIF".
        warnings: one line for each thing of the file that could not be kept.

    Raises:
        ValueError: an array of another shape or dtype.
    """

    pixels: Array
    alpha: Array | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "PNG"
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape or dtype.name not in _TIFF.dtypes:
            raise ValueError(f"pixels {shape} {dtype}; expected (H, W, 1 or 3) of uint8, uint16 or float32")
        if self.alpha is not None and (self.alpha.shape != shape[:2] or self.alpha.dtype != dtype):
            raise ValueError(f"alpha {self.alpha.shape} {self.alpha.dtype}; expected {shape[:2]} {dtype}")

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, first_frame: bool = False) -> Picture:
    """Returns the image in a PNG, JPEG, TIFF, WebP or BMP file, upright, in its own bit depth.

    Palettes, CMYK and YCbCr become RGB; 1-bit images become grey 0 or 255; a transparent colour becomes alpha.

    Args:
        path: the file; its first bytes decide the format, not its suffix.
        max_pixels: what the header may claim, checked before anything is decoded. A value above the default also
            raises Pillow's limit, which holds for the whole process.
        first_frame: take the first of several frames or pages, and accept GIF; otherwise both are refused.

    Raises:
        ImageError: anything else than one readable image; one line that starts with the path.
    """
    limits = _Limits(max_pixels, first_frame)
    with _reading(path, limits) as (file, im):
        if im is None or max(getattr(im, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE, (8,))) > 8:
            samples, icc, is_upright = codecs.decode_deep_tiff(file, limits.check)
            load_exif = im.getexif if im else lambda: codecs.tiff_tags(file)
            return _picture(samples, "TIFF", icc, load_exif, is_upright=is_upright)
        icc = im.info.get("icc_profile")
        if im.format == "PNG" and _raw_mode(im).endswith("16B"):
            file.seek(0)
            is_grey = not _raw_mode(im).startswith("RGB")
            samples, exif = codecs.decode_png16(file.read(), is_grey=is_grey, transparent=im.info.get("transparency"))
            im.info["exif"] = exif  # without the key Pillow would decode the pixels to look for a late block
            return _picture(samples, "PNG", icc, im.getexif)
        im.load()
        if im.mode not in _MODES:
            raise ImageError(f"{im.mode} pixels; expected grey, palette, RGB or CMYK; convert it to RGB")
        mode = _MODES[im.mode]
        if im.has_transparency_data:
            mode = mode.removesuffix("A") + "A"
        samples = codecs.samples_of(im, mode)
        return _picture(samples, "JPEG" if im.format == "MPO" else str(im.format), icc, im.getexif)


def read_mask(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, first_frame: bool = False) -> Array:
    """Returns the class numbers (H, W) of a mask file, upright: palette indexes, grey values as stored, or 0 and 1.

    The dtype is uint8, uint16 for 16-bit files, or int32 for 32-bit TIFF. Arguments as for `read_image`.

    Raises:
        ImageError: no readable image, or one in colours; one line that starts with the path.
    """
    with _reading(path, _Limits(max_pixels, first_frame)) as (_, im):
        if im is None or im.mode not in _MASK_DTYPES:
            raise ImageError(
                f"mask pixels are {im.mode if im else 'float or multi-channel'}; expected a palette, grey, 16-bit grey "
                "or 1-bit mask whose pixels are class numbers; turn its colours into them, or train with data.class_map"
            )
        step = _GREY_STEPS.get(_raw_mode(im)[:3], 1)
        im.load()
        ids = np.array(im).astype(_MASK_DTYPES[im.mode]) // step
        with contextlib.suppress(Exception):  # an unreadable EXIF block turns nothing
            ids = codecs.upright(ids, im.getexif().get(ExifTags.Base.Orientation))
        return np.ascontiguousarray(ids)


def write_image(path: str | os.PathLike[str], picture: Picture, *, quality: int = 95) -> tuple[str, ...]:
    """Writes a picture in the format that the suffix names, whole or not at all; returns what could not be kept.

    ICC profile, EXIF and alpha go along. TIFF is written uncompressed: every reader takes that in every bit depth.

    Args:
        path: in a folder that exists, with one of `SUFFIXES`; `suffix_for` finds one that can hold the picture.
        picture: what to write.
        quality: 1 to 100, for JPEG (always 4:4:4) and WebP.

    Raises:
        ImageError: the format cannot hold the dtype, alpha or size, a pixel is not finite, or the disk refuses.
    """
    name, suffix = printable(path), Path(path).suffix
    target = _FORMATS.get(suffix.lower())
    if target is None:
        raise ImageError(f"{name}: no image format has the suffix {suffix!r}; expected one of {' '.join(SUFFIXES)}")
    kind, other = target.kind, suffix_for(picture, suffix)
    if picture.pixels.dtype.name not in target.dtypes:
        raise ImageError(f"{name}: {kind} cannot hold {picture.pixels.dtype} pixels; use the suffix {other}")
    if picture.alpha is not None and not target.alpha:
        raise ImageError(f"{name}: {kind} cannot hold alpha; use the suffix {other}")
    if max(picture.pixels.shape[:2]) > target.max_side:
        size = f"{picture.width}x{picture.height}"
        raise ImageError(f"{name}: {size} is past the {target.max_side} pixels a side of {kind}; use the suffix .png")
    samples = picture.pixels if picture.alpha is None else np.dstack((picture.pixels, picture.alpha))
    if not np.isfinite(samples).all():
        raise ImageError(f"{name}: NaN or infinite pixels; expected finite ones; nothing is written")

    icc, exif, lost = picture.icc, picture.exif, []
    if icc and not target.metadata:
        icc, lost = None, ["colour profile"]
    if exif and (not target.metadata or (target is _JPEG and len(exif) > 65_533)):  # the size of a JPEG segment
        exif, lost = None, [*lost, "EXIF"]
    try:
        if target is _TIFF:
            data = codecs.encode_tiff(samples, icc, exif)
        elif samples.dtype == np.uint16:
            data = codecs.encode_png16(samples, icc, exif)
        else:
            options = {"JPEG": {"quality": quality, "subsampling": 0}, "WEBP": {"quality": quality, "exact": True}}
            im = Image.fromarray(samples.squeeze(2) if samples.shape[2] == 1 else samples)
            data = _encode(im, kind, icc_profile=icc, exif=exif or b"", **options.get(kind, {}))
    except Exception as error:
        raise ImageError(f"{name}: could not be encoded as {kind} ({_cause(error)})") from error
    _write(path, data)
    return tuple(f"{kind} cannot hold the {what} of the input: dropped" for what in lost)


def write_mask(path: str | os.PathLike[str], ids: Array, palette: Array | None = None) -> None:
    """Writes class numbers (H, W) in 0..65535 as a PNG, whole or not at all.

    Up to 255 the file is 8-bit: with indexes into `palette` ((N, 3) of 0..255) where one is given, else grey. Numbers
    past the end of the palette show black. Larger numbers make a 16-bit grey file.

    Raises:
        ImageError: another suffix than .png, numbers out of range, or the disk refuses.
    """
    name = printable(path)
    if Path(path).suffix.lower() != ".png":
        raise ImageError(f"{name}: a mask is written as PNG; use the suffix .png")
    if ids.ndim != 2 or 0 in ids.shape or ids.dtype.kind not in "bui":
        raise ImageError(f"{name}: a mask of shape {ids.shape} and dtype {ids.dtype}; expected (H, W) integers")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > 65_535:
        raise ImageError(f"{name}: class numbers {low}..{high}; expected 0..65535")
    im = Image.fromarray(ids.astype(np.uint8 if high < 256 else np.uint16))
    if palette is not None and high < 256:
        colours = np.zeros((max(high + 1, len(palette)), 3), np.uint8)  # its length decides how Pillow packs indexes
        colours[: len(palette)] = palette
        im.putpalette(colours.tobytes())
    _write(path, _encode(im, "PNG"))


def suffix_for(picture: Picture, wanted: str) -> str:
    """Returns `wanted` where that format can hold the picture's dtype and alpha, else ".png", or ".tif" for float."""
    target = _FORMATS.get(wanted.lower())
    if target and picture.pixels.dtype.name in target.dtypes and (target.alpha or picture.alpha is None):
        return wanted
    return ".tif" if picture.pixels.dtype == np.float32 else ".png"


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns the files in `folder` and below with one of `SUFFIXES`, sorted; hidden files and folders are skipped.

    Raises:
        ImageError: no such folder, or one below it that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ImageError(
            f"{printable(error.filename)}: {error.strerror}; expected a folder that can be read"
        ) from error

    found: list[Path] = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, f) for f in files if not f.startswith(".") and Path(f).suffix.lower() in _FORMATS]
    return sorted(found)


class _Limits(NamedTuple):
    max_pixels: int
    first_frame: bool

    def check(self, width: int, height: int, has_several: bool) -> None:
        if not width or not height:
            raise ImageError(f"{width}x{height} pixels; expected at least 1x1")
        if width * height > self.max_pixels:
            raise self.too_many(f"{width}x{height} = {width * height}")
        if has_several and not self.first_frame:
            raise ImageError(f"several frames or pages; expected one picture; split it, or {_FIRST_FRAME}")

    def too_many(self, count: str) -> ImageError:
        return ImageError(f"{count} pixels; expected at most {self.max_pixels}; for a file you trust raise max_pixels")


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str], limits: _Limits) -> Iterator[tuple[BinaryIO, ImageFile.ImageFile | None]]:
    """Opens a file by its header alone, within the limits; the image is None for a TIFF that Pillow does not know.

    Whatever is raised here or in the body comes out as an ImageError of one line.
    """
    name, kind = printable(path), None
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("a folder or device; expected an image file")
        if status.st_size == 0:
            raise ImageError("an empty file; expected an image; copy it again")
        if status.st_size > 16 * limits.max_pixels + 2**26:  # RGBA of 32 bits, and 64 MiB for metadata
            raise limits.too_many(f"{status.st_size} bytes, more than fit the allowed")
        with Path(path).open("rb") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # on broken metadata; pixels are judged on their own
            signature = _SIGNATURE.match(file.read(16))
            kind = signature and signature.lastgroup
            if kind is None:
                raise ImageError("not a PNG, JPEG, TIFF, WebP or BMP image; convert it to one of them")
            if kind == "GIF" and not limits.first_frame:
                raise ImageError(f"a GIF; expected PNG, JPEG, TIFF, WebP or BMP; convert it, or {_FIRST_FRAME}")
            yield file, _open(file, kind, limits)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file; check the name") from error
    except Exception as error:
        cause = f"{kind} signature, {_cause(error)}" if kind else _cause(error)
        raise ImageError(f"{name}: not a readable image ({cause}); copy it again") from error


def _open(file: BinaryIO, kind: str, limits: _Limits) -> ImageFile.ImageFile | None:
    if limits.max_pixels > MAX_PIXELS and Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.max_pixels)
    try:
        im = Image.open(file, formats=(kind,))
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise limits.too_many(count[0] if count else "too many") from error
    except UnidentifiedImageError:
        if kind == "TIFF":
            return None
        raise ValueError("damaged header or 0 pixels") from None
    # Phone cameras put a preview or depth map behind the photograph (MPO): the photograph is the picture.
    limits.check(im.width, im.height, im.format != "MPO" and getattr(im, "is_animated", False))
    return im


def _raw_mode(im: ImageFile.ImageFile) -> str:
    """How the samples lie in the file, as in "RGB;16B"; known only before the pixels are loaded."""
    arguments = im.tile[0].args
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _picture(
    samples: Array, kind: str, icc: bytes | None, load_exif: Callable[[], Image.Exif], *, is_upright: bool = False
) -> Picture:
    """Returns the picture of (H, W, S) samples: grey, grey and alpha, RGB, or RGBA."""
    lost: list[str] = []
    exif: bytes | None = None
    try:
        tags = load_exif()
        if not is_upright:
            samples = codecs.upright(samples, tags.get(ExifTags.Base.Orientation))
        exif = codecs.clean_exif(tags, is_tiff=kind == "TIFF")
    except Exception as error:
        lost.append(f"the EXIF block cannot be read ({_cause(error)}): dropped")
    channels = samples.shape[2] - (samples.shape[2] % 2 == 0)
    if icc and _PROFILE_CHANNELS.get(icc[16:20], channels) != channels:
        space = icc[16:20].decode().strip()
        lost.append(f"the {space} colour profile does not fit {'RGB' if channels == 3 else 'grey'} pixels: dropped")
        icc = None
    if samples.dtype.kind == "f":
        if samples.dtype.itemsize > 4:
            lost.append("64-bit float pixels are rounded to 32 bits")
        with np.errstate(over="ignore"):
            samples = samples.astype(np.float32, copy=False)
        if not np.isfinite(samples).all():
            raise ImageError("NaN or infinite pixels; expected finite 32-bit floats; replace them first")
    alpha = None if channels == samples.shape[2] else np.ascontiguousarray(samples[..., channels])
    pixels = np.ascontiguousarray(samples[..., :channels])
    return Picture(pixels, alpha, icc or None, exif, kind, tuple(lost))


def _cause(error: Exception) -> str:
    text = printable(getattr(error, "strerror", None) or error)[:160]
    return text if " " in text else f"{type(error).__name__} {text}".strip()  # as KeyError, which says only the key


def _encode(im: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    im.save(buffer, kind, **options)
    return buffer.getvalue()


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    with naming_disk_faults(path):
        atomic_write(path, data)


@contextlib.contextmanager
def naming_disk_faults(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what a disk refuses into an ImageError that says what to do."""
    try:
        yield
    except OSError as error:
        step = "choose a folder that you may write to"
        if error.errno == errno.ENOENT:
            step = "create the folder first"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            step = "free some space and run again"
        raise ImageError(f"{printable(path)}: cannot be written ({error.strerror or error}); {step}") from error
