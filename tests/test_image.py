from __future__ import annotations

import dataclasses
import errno
import io
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from densekit.errors import ImageError
from densekit.image import Picture, list_images, read_image, read_mask, suffix_for, write_image, write_mask

H, W = 8, 12
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def random(shape, dtype="uint8", seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape, dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def smooth(height=48, width=64):
    """A colour gradient that JPEG and WebP keep within a few levels."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], 2).astype(np.uint8)


def encode(im, kind, **options):
    buffer = io.BytesIO()
    im.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, depth, colour_type, rows, extra=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png16(samples, extra=b""):
    height, width, count = samples.shape
    rows = np.zeros((height, 1 + 2 * width * count), np.uint8)
    rows[:, 1:] = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], rows.tobytes(), extra)


def exif(orientation=1, make="densekit"):
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = make
    tags[0x8769] = {0x9003: "2020:01:02 03:04:05", 0x829A: 0.5}
    tags[0x8825] = {1: "N", 2: (47.0, 22.0, 30.0)}
    loaded = Image.Exif()  # as from a file: Pillow's own TIFF writer takes no other
    loaded.load(tags.tobytes())
    return loaded


def stored(upright, orientation):
    """What a camera stores, so that orientation 1..8 shows `upright`: by the words of the EXIF standard.

    "The 0th row is at the visual top / bottom / ... and the 0th column is at the visual left / right / ...".
    """
    rows, columns = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    height, width = upright.shape[:2]
    across = {"top": range(height), "bottom": range(height)[::-1], "left": range(width), "right": range(width)[::-1]}
    by_column = rows in ("left", "right")
    cell = (lambda r, c: upright[c, r]) if by_column else (lambda r, c: upright[r, c])
    return np.array([[cell(r, c) for c in across[columns]] for r in across[rows]])


@pytest.fixture
def file(tmp_path):
    def make(data, name="input"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return make


rgb8, rgba8, la8 = random((H, W, 3)), random((H, W, 4)), random((H, W, 2))
grey16, rgb16, rgba16 = random((H, W), "uint16"), random((H, W, 3), "uint16"), random((H, W, 4), "uint16")
float32 = random((H, W, 3), "float32")
indexes = random((H, W)) % 22
palette = random((22, 3), seed=1)
paletted = Image.fromarray(indexes)
paletted.putpalette(palette.tobytes())
bits = random((H, W)) > 127
frames = [Image.fromarray(random((H, W, 3), seed=seed)) for seed in (0, 1)]
cmyk = Image.fromarray(random((1, 1, 4), seed=3).repeat(H, 0).repeat(W, 1), "CMYK")
column = random((70, 1, 3))

NOT_READABLE = r"not a readable image \({} signature, .+\); copy it again"
SEVERAL = r"several frames or pages; expected one picture; split it, or take the first one with --first-frame.*"
EMPTY = "an empty file; expected an image; copy it again"
NO_MASK = r"mask pixels are {}; expected a palette, grey, 16-bit grey or 1-bit mask .*"

# The eighteen cases of the format table: bytes, then what an image and a mask become: an array, or the error's words.
CASES = {
    "cmyk jpeg": (encode(cmyk, "JPEG", quality=100), np.array(cmyk.convert("RGB")), NO_MASK.format("CMYK")),
    "palette png": (encode(paletted, "PNG"), palette[indexes], indexes),
    "rgba": (encode(Image.fromarray(rgba8), "PNG"), rgba8, NO_MASK.format("RGBA")),
    "la": (encode(Image.fromarray(la8), "PNG"), la8, NO_MASK.format("LA")),
    "mode 1": (encode(Image.fromarray(bits), "PNG"), bits[..., None].astype(np.uint8) * 255, bits.astype(np.uint8)),
    "gray16": (encode(Image.fromarray(grey16), "PNG"), grey16[..., None], grey16),
    "rgb16": (png16(rgb16), rgb16, NO_MASK.format("RGB")),
    "float tiff": (tiff(float32, photometric="rgb"), float32, NO_MASK.format("float or multi-channel")),
    "exif6 jpeg": (
        encode(Image.fromarray(stored(smooth(), 6)), "JPEG", exif=exif(6), quality=100, subsampling=0),
        smooth(), NO_MASK.format("RGB"),
    ),
    "exif6 png": (encode(Image.fromarray(stored(indexes, 6)), "PNG", exif=exif(6)), indexes[..., None], indexes),
    "gif 2": (encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), "a GIF; .*", "a GIF; .*"),
    "animated webp": (
        encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), SEVERAL, SEVERAL,
    ),
    "2-page tiff": (encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]), SEVERAL, SEVERAL),
    "1 px wide": (encode(Image.fromarray(column), "PNG"), column, NO_MASK.format("RGB")),
    "truncated jpeg": (encode(frames[0], "JPEG")[:-60], NOT_READABLE.format("JPEG"), NO_MASK.format("RGB")),
    "truncated png": (png16(rgb16)[:-60], NOT_READABLE.format("PNG"), NO_MASK.format("RGB")),
    "empty": (b"", EMPTY, EMPTY),
    "0-size": (png(0, 5, 8, 2, b""), NOT_READABLE.format("PNG"), NOT_READABLE.format("PNG")),
}  # fmt: skip
DEEP_TIFFS = {
    "grey": (grey16, {"photometric": "minisblack"}),
    "grey big-endian": (grey16.astype(">u2"), {"photometric": "minisblack", "byteorder": ">"}),
    "rgb": (rgb16, {"photometric": "rgb"}),
    "rgb bigtiff": (rgb16, {"photometric": "rgb", "bigtiff": True}),
    "rgb deflate": (rgb16, {"photometric": "rgb", "compression": "zlib", "predictor": True}),
    "rgb tiles": (rgb16, {"photometric": "rgb", "tile": (16, 16)}),
    "rgba": (rgba16, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "rgba deflate": (rgba16, {"photometric": "rgb", "extrasamples": ["unassalpha"], "compression": "zlib"}),
    "grey and alpha": (
        rgba16[..., :2],
        {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]},
    ),
    "float grey": (float32[..., 0], {"photometric": "minisblack"}),
    "float rgb deflate": (float32, {"photometric": "rgb", "compression": "zlib"}),
    "float16": (float32.astype(np.float16), {"photometric": "rgb"}),
}


def together(picture):
    return picture.pixels if picture.alpha is None else np.dstack((picture.pixels, picture.alpha))


def cause(path, read=read_image, **options):
    """The error's text without the path it must start with."""
    with pytest.raises(ImageError) as caught:
        read(path, **options)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert "object at" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("name", CASES)
def test_each_format_is_read_rightly_or_refused_with_a_line(name, read, file, capfd):
    data, *results = CASES[name]
    expected = results[read is read_mask]
    if isinstance(expected, str):
        assert re.fullmatch(expected, cause(file(data), read))
    elif read is read_mask:
        mask = read(file(data))
        np.testing.assert_array_equal(mask, expected, strict=True)
    else:
        picture = read(file(data))
        assert picture.pixels.dtype == expected.dtype
        is_lossy = data.startswith(b"\xff\xd8")
        np.testing.assert_allclose(together(picture), expected, rtol=0, atol=3 if is_lossy else 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["gif 2", "animated webp", "2-page tiff"])
def test_the_first_frame_is_taken_on_request(name, file):
    picture = read_image(file(CASES[name][0]), first_frame=True)
    if name != "gif 2":  # GIF has 256 colours
        np.testing.assert_array_equal(picture.pixels, random((H, W, 3)))
    assert picture.pixels.shape == (H, W, 3)


def test_an_mpo_photograph_is_a_jpeg(file):
    picture = read_image(file(encode(frames[0], "MPO", save_all=True, append_images=frames[1:])))
    assert (picture.format, picture.pixels.shape) == ("JPEG", (H, W, 3))


@pytest.mark.parametrize("name", DEEP_TIFFS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_deep_tiffs_keep_their_depth_in_every_layout(name, orientation, file):
    samples, options = DEEP_TIFFS[name]
    data = tiff(stored(samples, orientation), extratags=[(274, "H", 1, orientation, True)], **options)
    picture = read_image(file(data))
    expected = samples.astype(np.float32) if samples.dtype == np.float16 else samples.astype(samples.dtype.name)
    np.testing.assert_array_equal(together(picture), expected.reshape(H, W, -1), strict=True)
    assert picture.warnings == ()


def test_lzw_and_planar_tiffs_keep_their_depth(file):
    lzw = cv2.imencode(".tif", rgb16[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    planar = tiff(rgb16.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    for data in (lzw, planar):
        np.testing.assert_array_equal(read_image(file(data)).pixels, rgb16)


@pytest.mark.parametrize(
    ("samples", "options", "words"),
    [
        (grey16, {"photometric": "miniswhite"}, "1 x 16-bit uint16 MINISWHITE NONE"),
        (rgba16, {"photometric": "rgb", "extrasamples": ["assocalpha"]}, "4 x 16-bit uint16 RGB ASSOCALPHA NONE"),
        (grey16.astype(np.int16), {"photometric": "minisblack"}, "1 x 16-bit int16 MINISBLACK NONE"),
        (grey16.astype(np.uint32), {"photometric": "minisblack"}, "1 x 32-bit uint32 MINISBLACK NONE"),
        (
            rgb16.transpose(2, 0, 1),
            {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"},
            "3 x 16-bit uint16 RGB ADOBE_DEFLATE",
        ),
    ],
)
def test_a_tiff_that_would_be_read_wrongly_is_refused(samples, options, words, file):
    assert cause(file(tiff(samples, **options))) == (
        f"a TIFF of {words}; expected 16-bit unsigned or float samples, grey with black as 0 or RGB, "
        "alpha not premultiplied; convert it to uncompressed RGB or to 16-bit PNG"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_float_pixels_must_be_finite(value, file):
    samples = random((H, W), "float64")
    samples[3, 4] = value
    text = cause(file(tiff(samples, photometric="minisblack")))
    assert text == "NaN or infinite pixels; expected finite 32-bit floats; replace them first"


def test_64_bit_floats_are_rounded_with_a_warning(file):
    samples = random((H, W), "float64")
    picture = read_image(file(tiff(samples, photometric="minisblack")))
    np.testing.assert_array_equal(picture.pixels[..., 0], samples.astype(np.float32), strict=True)
    assert picture.warnings == ("64-bit float pixels are rounded to 32 bits",)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("transparent", [False, True])
def test_16_bit_png_keeps_depth_and_transparency(count, transparent, file):
    samples = rgba16[..., :count]
    colour = samples[2, 3]
    extra = chunk(b"tRNS", colour.astype(">u2").tobytes()) if transparent and count in (1, 3) else b""
    picture = read_image(file(png16(samples, extra)))
    if extra:
        alpha = np.where((samples == colour).all(2), 0, 65_535).astype(np.uint16)
        samples = np.dstack((samples, alpha))
    np.testing.assert_array_equal(together(picture), samples, strict=True)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_becomes_alpha(mode, file):
    im = {"P": paletted, "L": Image.fromarray(indexes), "RGB": Image.fromarray(rgb8)}[mode]
    key = tuple(int(v) for v in rgb8[2, 3]) if mode == "RGB" else int(indexes[2, 3])
    picture = read_image(file(encode(im, "PNG", transparency=key)))
    hit = (rgb8 == rgb8[2, 3]).all(2) if mode == "RGB" else indexes == indexes[2, 3]
    np.testing.assert_array_equal(picture.alpha, np.where(hit, 0, 255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG mask", "PNG 16", "TIFF", "TIFF 16", "TIFF 16 deflate", "WEBP"])
def test_orientation_is_applied_once(kind, orientation, file):
    picture = smooth(16, 24)
    deep = picture.astype(np.uint16) * 257
    tags = exif(orientation)
    upright = Image.fromarray(stored(picture, orientation))
    if kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
        data = encode(upright, kind, exif=tags, **options)
    elif kind == "PNG mask":
        data = encode(Image.fromarray(stored(picture[..., 0], orientation)), "PNG", exif=tags)
        np.testing.assert_array_equal(read_mask(file(data)), picture[..., 0], strict=True)
        return
    elif kind == "PNG 16":
        data = png16(stored(deep, orientation), chunk(b"eXIf", tags.tobytes()[6:]))
    else:
        packing = {"compression": "zlib"} if "deflate" in kind else {}
        extra = [(274, "H", 1, orientation, True)]
        data = tiff(stored(deep, orientation), photometric="rgb", extratags=extra, **packing)
    result = read_image(file(data))
    expected = deep if "16" in kind else picture
    assert result.pixels.dtype == expected.dtype
    np.testing.assert_allclose(result.pixels, expected, rtol=0, atol=3 if kind == "JPEG" else 0)
    again = Image.Exif()
    again.load(result.exif)
    assert again.get(0x0112, 1) == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("has_alpha", [False, True])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", "uint8"), (".png", "uint16"), (".tif", "uint8"), (".tiff", "uint16"), (".tif", "float32")],
)
def test_a_round_trip_keeps_depth_alpha_icc_and_exif(suffix, dtype, has_alpha, channels, tmp_path):
    pixels, alpha = random((H, W, channels), dtype), random((H, W), dtype, seed=1)
    icc = ICC if channels == 3 else ICC[:16] + b"GRAY" + ICC[20:]
    picture = Picture(pixels, alpha if has_alpha else None, icc, exif().tobytes())
    path = tmp_path / f"out{suffix}"
    assert write_image(path, picture) == ()
    result = read_image(path)
    np.testing.assert_array_equal(result.pixels, pixels, strict=True)
    assert (result.alpha is None) is not has_alpha
    if has_alpha:
        np.testing.assert_array_equal(result.alpha, alpha, strict=True)
    assert result.icc == icc
    assert result.warnings == ()
    tags = Image.Exif()
    tags.load(result.exif)
    assert tags[0x010F] == "densekit"
    assert tags.get_ifd(0x8769) == {0x9003: "2020:01:02 03:04:05", 0x829A: 0.5}
    assert tags.get_ifd(0x8825) == {1: "N", 2: (47.0, 22.0, 30.0)}
    write_image(path, result)
    assert read_image(path).exif == result.exif


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".png", "uint16"), (".tif", "uint8"), (".tif", "uint16"), (".tif", "float32")]
)
def test_other_programs_read_our_encoders_alike(suffix, dtype, channels, tmp_path):
    samples = random((H, W, channels), dtype)
    has_alpha = channels in (2, 4)
    pixels, alpha = (samples[..., :-1], samples[..., -1]) if has_alpha else (samples, None)
    path = tmp_path / f"out{suffix}"
    write_image(path, Picture(pixels, alpha, ICC, exif().tobytes()))
    if suffix == ".tif":
        np.testing.assert_array_equal(tifffile.imread(path), samples.squeeze(), strict=True)
    if channels != 2 and not (channels == 4 and dtype == "uint8"):  # OpenCV premultiplies 8-bit RGBA TIFF
        theirs = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).reshape(H, W, -1)
        np.testing.assert_array_equal(theirs[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]], samples)
    if not (suffix == ".tif" and dtype != "uint8" and channels == 2) and not (dtype == "float32" and channels > 1):
        with Image.open(path) as im:
            assert im.info["icc_profile"] == ICC
            assert im.getexif()[0x010F] == "densekit"
            im.load()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_formats_stay_close_and_keep_metadata(suffix, tmp_path):
    path = tmp_path / f"out{suffix.upper()}"
    assert write_image(path, Picture(smooth(), icc=ICC, exif=exif().tobytes())) == ()
    result = read_image(path)
    assert np.abs(result.pixels.astype(int) - smooth()).mean() < 1.5
    assert result.icc == ICC
    tags = Image.Exif()
    tags.load(result.exif)
    assert tags[0x010F] == "densekit"


def test_jpeg_is_written_without_chroma_subsampling(tmp_path):
    write_image(tmp_path / "out.jpg", Picture(smooth()))
    with Image.open(tmp_path / "out.jpg") as im:
        assert [layer[1:3] for layer in im.layer] == [(1, 1)] * 3


def test_webp_keeps_alpha(tmp_path):
    alpha = random((H, W))
    write_image(tmp_path / "out.webp", Picture(rgb8, alpha))
    np.testing.assert_array_equal(read_image(tmp_path / "out.webp").alpha, alpha)


def test_what_a_format_cannot_hold_is_said(tmp_path):
    picture = Picture(rgb8, icc=ICC, exif=exif().tobytes())
    assert write_image(tmp_path / "out.bmp", picture) == (
        "BMP cannot hold the colour profile of the input: dropped",
        "BMP cannot hold the EXIF of the input: dropped",
    )
    np.testing.assert_array_equal(read_image(tmp_path / "out.bmp").pixels, rgb8)
    long = Picture(rgb8, exif=exif(make="x" * 66_000).tobytes())
    assert write_image(tmp_path / "out.jpg", long) == ("JPEG cannot hold the EXIF of the input: dropped",)


def test_a_cmyk_profile_does_not_stay_on_rgb_pixels(file):
    profile = ICC[:16] + b"CMYK" + ICC[20:]
    picture = read_image(file(encode(cmyk, "JPEG", icc_profile=profile)))
    assert picture.icc is None
    assert picture.warnings == ("the CMYK colour profile does not fit RGB pixels: dropped",)


def test_a_broken_exif_block_costs_only_itself(file):
    picture = read_image(file(encode(frames[0], "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")))
    np.testing.assert_array_equal(picture.pixels, random((H, W, 3)))
    broken = read_image(file(encode(frames[0], "PNG", exif=b"Exif\0\0nothing like a directory")))
    assert broken.warnings[0].startswith("the EXIF block cannot be read (")


def test_the_thumbnail_of_the_unturned_image_is_not_carried(file):
    thumbnail = encode(Image.fromarray(smooth()), "JPEG")
    head = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 26)
    directory = struct.pack(">HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(thumbnail), 0)
    data = encode(Image.fromarray(smooth()), "JPEG", exif=b"Exif\0\0" + head + directory + thumbnail)
    assert thumbnail in data
    assert len(read_image(file(data)).exif) < 60


@pytest.mark.parametrize(
    ("picture", "suffix", "words", "better"),
    [
        (Picture(rgb16), ".jpg", "JPEG cannot hold uint16 pixels; use the suffix .png", ".png"),
        (Picture(rgb16), ".webp", "WEBP cannot hold uint16 pixels; use the suffix .png", ".png"),
        (Picture(float32), ".png", "PNG cannot hold float32 pixels; use the suffix .tif", ".tif"),
        (Picture(rgb8, rgba8[..., 3]), ".jpeg", "JPEG cannot hold alpha; use the suffix .png", ".png"),
        (Picture(rgb8, rgba8[..., 3]), ".bmp", "BMP cannot hold alpha; use the suffix .png", ".png"),
        (
            Picture(rgb8),
            ".gif",
            "no image format has the suffix '.gif'; expected one of .png .jpg .jpeg .tif .tiff .webp .bmp",
            ".png",
        ),
    ],
)
def test_a_format_that_cannot_hold_the_picture_is_refused(picture, suffix, words, better, tmp_path):
    path = tmp_path / f"out{suffix}"
    assert cause(path, write_image, picture=picture) == words
    assert suffix_for(picture, suffix) == better
    write_image(path.with_suffix(better), picture)
    assert suffix_for(picture, better.upper()) == better.upper()


@pytest.mark.parametrize(("suffix", "kind", "limit"), [(".jpg", "JPEG", 65_500), (".webp", "WEBP", 16_383)])
def test_the_longest_side_of_a_format_is_known(suffix, kind, limit, tmp_path):
    path = tmp_path / f"out{suffix}"
    write_image(path, Picture(random((1, limit, 1))))
    text = cause(path, write_image, picture=Picture(random((1, limit + 1, 1))))
    assert text == f"{limit + 1}x1 is past the {limit} pixels a side of {kind}; use the suffix .png"


def test_pixels_that_are_not_finite_are_not_written(tmp_path):
    pixels = float32.copy()
    pixels[1, 2, 0] = np.nan
    text = cause(tmp_path / "out.tif", write_image, picture=Picture(pixels))
    assert text == "NaN or infinite pixels; expected finite ones; nothing is written"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_failed_write_leaves_the_old_file_and_no_other(number, suffix, tmp_path, monkeypatch):
    path = tmp_path / f"out{suffix}"
    write_image(path, Picture(rgb16))
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    text = cause(path, write_image, picture=Picture(rgb16 // 2))
    step = "free some space and run again" if number == errno.ENOSPC else "choose a folder that you may write to"
    assert text == f"cannot be written ({os.strerror(number)}); {step}"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_said(tmp_path):
    path = tmp_path / "none" / "out.png"
    expected = "cannot be written (No such file or directory); create the folder first"
    assert cause(path, write_image, picture=Picture(rgb8)) == expected
    assert cause(path, write_mask, ids=indexes) == expected


@pytest.mark.parametrize(
    ("pixels", "alpha"),
    [(rgb8[..., 0], None), (rgb8[..., :2], None), (rgb8.astype(int), None), (rgb8[:0], None), (rgb8, grey16)],
)
def test_a_picture_checks_its_arrays(pixels, alpha):
    with pytest.raises(ValueError, match="expected"):
        Picture(pixels, alpha)


def test_a_picture_knows_its_size():
    picture = dataclasses.replace(Picture(rgb8), pixels=rgb16)
    assert (picture.height, picture.width) == (H, W)


def test_voc_masks_come_back_as_they_are_written(tmp_path):
    path = tmp_path / "mask.png"
    ids = indexes.copy()
    ids[0, 0] = 255  # void, past the end of the palette
    write_mask(path, ids, palette)
    np.testing.assert_array_equal(read_mask(path), ids, strict=True)
    with Image.open(path) as im:
        assert im.mode == "P"
        np.testing.assert_array_equal(np.array(im.convert("RGB"))[1:], palette[ids[1:]])


@pytest.mark.parametrize("count", [2, 4, 16, 17, 256])
def test_small_palettes_keep_every_index(count, tmp_path):
    ids = (random((H, W)) % np.uint16(count)).astype(np.uint8)
    write_mask(tmp_path / "mask.png", ids.astype(np.int64), random((count, 3)))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), ids, strict=True)


def test_masks_without_palette_are_grey_and_large_numbers_16_bit(tmp_path):
    write_mask(tmp_path / "mask.png", indexes.astype(np.int32))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), indexes, strict=True)
    write_mask(tmp_path / "mask.png", grey16.astype(np.int64), palette)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), grey16, strict=True)
    write_mask(tmp_path / "mask.png", bits)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), bits.astype(np.uint8), strict=True)


@pytest.mark.parametrize(("depth", "row"), [(2, 0b00011011), (4, 0b00011111)])
def test_masks_of_2_and_4_bit_grey_keep_the_stored_numbers(depth, row, file):
    width = 8 // depth
    mask = read_mask(file(png(width, 1, depth, 0, bytes([0, row]))))
    assert mask.tolist() == [[0, 1, 2, 3] if depth == 2 else [1, 15]]


def test_integer_tiff_masks_keep_their_numbers(file):
    ids = random((H, W), "uint16").astype(np.int32) * 9
    np.testing.assert_array_equal(read_mask(file(tiff(ids, photometric="minisblack"))), ids, strict=True)
    big_endian = tiff(grey16.astype(">u2"), photometric="minisblack", byteorder=">")
    np.testing.assert_array_equal(read_mask(file(big_endian)), grey16, strict=True)


@pytest.mark.parametrize(
    ("ids", "name", "words"),
    [
        (indexes, "mask.jpg", "a mask is written as PNG; use the suffix .png"),
        (rgb8, "mask.png", "a mask of shape (8, 12, 3) and dtype uint8; expected (H, W) integers"),
        (float32[..., 0], "mask.png", "a mask of shape (8, 12) and dtype float32; expected (H, W) integers"),
        (np.array([[-1, 65_536]]), "mask.png", "class numbers -1..65536; expected 0..65535"),
    ],
)
def test_what_is_no_mask_is_not_written(ids, name, words, tmp_path):
    assert cause(tmp_path / name, write_mask, ids=ids) == words


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello, world", "not a PNG, JPEG, TIFF, WebP or BMP image; convert it to one of them"),
        (CASES["gif 2"][0], "a GIF; expected PNG, JPEG, TIFF, WebP or BMP; convert it, or take the first one with "
         "--first-frame (first_frame=True)"),
        (png16(rgb16)[:100], "not a readable image (PNG signature, truncated at byte 100); copy it again"),
        (b"\x89PNG\r\n\x1a\nrubbish",
         "not a readable image (PNG signature, damaged header or 0 pixels); copy it again"),
        (encode(Image.new("LAB", (4, 4)), "TIFF"),
         "LAB pixels; expected grey, palette, RGB or CMYK; convert it to RGB"),
    ],
)  # fmt: skip
def test_messages_name_the_fault_and_the_next_step(data, words, file):
    assert cause(file(data)) == words


def test_a_missing_file_a_folder_and_a_pipe_are_named(tmp_path):
    assert cause(tmp_path / "none.png") == "no such file; check the name"
    assert cause(tmp_path) == "a folder or device; expected an image file"
    os.mkfifo(tmp_path / "pipe.png")
    assert cause(tmp_path / "pipe.png") == "a folder or device; expected an image file"


def test_control_characters_of_a_path_are_escaped(tmp_path):
    with pytest.raises(ImageError, match=r"a\\nb\.png: no such file"):
        read_image(tmp_path / "a\nb.png")


def bombs():
    yield "png 20000", png(20_000, 20_000, 8, 2, bytes(60_001 * 20)), 20_000
    yield "png 16 bit", png(40_000, 40_000, 16, 2, bytes(1000)), 40_000
    yield "png 13378", png(13_378, 13_378, 8, 0, bytes(1000)), 13_378
    for name, dtype, shape in [("tiff", "uint8", (3,)), ("tiff 16", "uint16", (3,)), ("tiff float", "float32", (3,))]:
        data = bytearray(tiff(np.ones((2, 3, *shape), dtype), photometric="rgb"))
        for tag in (256, 257):
            at = data.index(struct.pack("<H", tag))
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 40_000)
        yield name, bytes(data), 40_000
    webp = bytearray(encode(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    at = webp.index(b"VP8L") + 9
    webp[at : at + 4] = struct.pack("<I", 16_382 | 16_382 << 14)
    yield "webp", bytes(webp), 16_383
    yield "bmp", b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0), 30_000


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize(("data", "side"), [pytest.param(data, side, id=name) for name, data, side in bombs()])
def test_a_bomb_is_refused_by_its_header(data, side, read, file):
    path = file(data)
    start = time.process_time()
    text = cause(path, read)
    assert time.process_time() - start < 0.2
    if not text.startswith("mask pixels are float"):
        assert str(side * side) in text
        assert text.endswith("pixels; expected at most 178956970; for a file you trust raise max_pixels")


def test_a_text_bomb_does_not_unfold(file):
    zeros = zlib.compress(bytes(100_000_000), 9)
    data = png(4, 4, 8, 0, bytes(20), extra=chunk(b"zTXt", b"Comment\0\0" + zeros))
    assert len(data) < 200_000
    assert "PNG signature" in cause(file(data))


def test_a_long_thin_image_is_no_bomb(file):
    for height, width in ((1, 70_000), (70_000, 1)):
        pixels = random((height, width, 3), "uint16")
        picture = read_image(file(png16(pixels)))
        np.testing.assert_array_equal(picture.pixels, pixels)


def test_the_pixel_limit_can_be_lowered_and_raised(file, monkeypatch):
    path = file(CASES["rgba"][0])
    words = f"{W}x{H} = {W * H} pixels; expected at most {W * H - 1}; for a file you trust raise max_pixels"
    assert cause(path, max_pixels=W * H - 1) == words
    assert read_image(path, max_pixels=W * H).width == W
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back after the test
    bomb = file(png(20_000, 20_000, 8, 2, bytes(60_001 * 20)))
    assert cause(bomb, max_pixels=20_000**2 - 1).startswith(
        "20000x20000 = 400000000 pixels; expected at most 399999999;"
    )


def test_a_huge_file_is_refused_unread(file):
    path = file(CASES["rgba"][0])
    os.truncate(path, 2**33)  # sparse
    assert cause(path).startswith("8589934592 bytes, more than fit the allowed pixels; expected at most 178956970;")


def test_images_are_listed_recursively_and_sorted(tmp_path):
    names = ["b/a.PNG", "a.jpg", "b/c/x.tiff", "notes.txt", ".hidden.png", ".cache/y.png", "z.webp", "b.bmp"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)]
    assert found == ["a.jpg", "b/a.PNG", "b/c/x.tiff", "b.bmp", "z.webp"]
    text = f"{tmp_path / 'none'}: No such file or directory; expected a folder that can be read"
    with pytest.raises(ImageError, match=re.escape(text)):
        list_images(tmp_path / "none")


def test_importing_the_module_loads_no_decoder_but_pillow():
    code = "import sys, densekit.image; print([m for m in ('cv2', 'tifffile', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def seeds():
    """One intact file of each kind that takes a path of its own through the reader."""
    image = Image.fromarray(smooth())
    deep = smooth().astype(np.uint16) * 257
    return {
        "png": encode(image, "PNG", exif=exif(6), icc_profile=ICC),
        "png palette": encode(image.quantize(16), "PNG"),
        "png rgba": encode(image.convert("RGBA"), "PNG"),
        "png 16": png16(deep, chunk(b"eXIf", exif(3).tobytes()[6:])),
        "jpeg": encode(image, "JPEG", exif=exif(8)),
        "jpeg progressive": encode(image, "JPEG", progressive=True),
        "jpeg cmyk": encode(image.convert("CMYK"), "JPEG"),
        "tiff": encode(image, "TIFF", exif=exif(6)),
        "tiff lzw": encode(image, "TIFF", compression="tiff_lzw"),
        "tiff 16": tiff(deep, photometric="rgb"),
        "tiff 16 deflate": tiff(deep, photometric="rgb", compression="zlib"),
        "tiff float": tiff(deep.astype(np.float32), photometric="rgb"),
        "webp": encode(image, "WEBP", exif=exif(6)),
        "bmp": encode(image, "BMP"),
    }


def mutate(data, rng):
    """Returns a damaged copy: cut, bytes flipped, head overwritten, a run deleted or inserted."""
    at = int(rng.integers(len(data)))
    run = int(rng.integers(1, 64))
    damage = rng.integers(5)
    if damage == 0:
        return data[:at]
    if damage == 1:
        changed = bytearray(data)
        for place in rng.integers(len(data), size=run):
            changed[place] ^= int(rng.integers(1, 256))
        return bytes(changed)
    if damage == 2:
        return data[: at % 64] + rng.bytes(run) + data[at % 64 + run :]
    if damage == 3:
        return data[:at] + data[at + run :]
    return data[:at] + rng.bytes(run) + data[at:]


def test_damaged_files_end_in_an_image_error_or_a_picture(file, capfd):
    rng = np.random.default_rng(7)
    messages = []
    for data in seeds().values():
        assert read_image(file(data)).pixels.shape[:2] in ((48, 64), (64, 48))
        for _ in range(24):
            path = file(mutate(data, rng))
            for read in (read_image, read_mask):
                try:
                    read(path, max_pixels=2**24)
                except ImageError as error:
                    messages.append(str(error).removeprefix(f"{path}: "))
    assert len(messages) > 300
    assert not [text for text in messages if "\n" in text or str(path) in text or "object at" in text]
    out, err = capfd.readouterr()
    assert out == ""
    # The libtiff inside Pillow prints a broken 8-bit TIFF itself; nothing in Pillow turns that off.
    assert [line for line in err.splitlines() if not re.search("TIFF|tempfile.tif", line)] == []


def test_the_shared_photographs_are_read(request):
    folder = Path(request.config.rootpath).parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data")
    nuclei = list_images(folder / "nuclei")
    assert {read_image(path).pixels.dtype.name for path in nuclei[:40]} <= {"uint8", "uint16"}
