from __future__ import annotations

import errno
import io
import os
import random

import numpy as np
import pytest
import tifffile
from PIL import Image

from densekit import codecs
from densekit.errors import ImageError
from densekit.image import Picture, read_image, write_image
from densekit.tiff import open_tiff

EXIF = Image.Exif()
EXIF[270], EXIF[274], EXIF[36867] = "a harbour", 1, "2026:01:02 03:04:05"
ICC = b"\0" * 16 + b"RGB " + b"\0" * 100


def picture(shape: tuple[int, ...], dtype: str, *, alpha: bool = False) -> Picture:
    rng = np.random.default_rng(sum(shape))
    samples = rng.random((*shape[:2], shape[2] + alpha)) * (1 if dtype == "float32" else np.iinfo(dtype).max)
    pixels = samples.astype(dtype)
    return Picture(
        np.ascontiguousarray(pixels[..., : shape[2]]), pixels[..., -1].copy() if alpha else None, ICC, EXIF.tobytes()
    )


def samples_of(picture: Picture) -> np.ndarray:
    return picture.pixels if picture.alpha is None else np.dstack((picture.pixels, picture.alpha))


def put_in_pieces(place, samples: np.ndarray, rows: int = 7, columns: int = 10) -> None:
    corners = [(y, x) for y in range(0, samples.shape[0], rows) for x in range(0, samples.shape[1], columns)]
    random.Random(0).shuffle(corners)
    for y, x in corners:
        place(y, x, samples[y : y + rows, x : x + columns])


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_tiff_written_piece_by_piece_is_the_one_written_at_once(tmp_path, dtype, channels, alpha):
    large = picture((24, 36, channels), dtype, alpha=alpha)
    small = picture((12, 18, channels), dtype, alpha=alpha)
    with open_tiff(tmp_path / "pieces.tif", small, 2) as place:
        put_in_pieces(place, samples_of(large))
    write_image(tmp_path / "whole.tif", large)
    assert (tmp_path / "pieces.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    found = read_image(tmp_path / "pieces.tif")
    assert np.array_equal(found.pixels, large.pixels)
    assert found.icc == (ICC if channels == 3 else None)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_what_32_bits_cannot_reach_is_a_bigtiff_that_every_reader_takes(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(codecs, "MAX_TIFF", 100)
    large = picture((24, 36, 3), dtype, alpha=True)
    with open_tiff(tmp_path / "big.tif", large, 1) as place:
        put_in_pieces(place, samples_of(large))
    with tifffile.TiffFile(tmp_path / "big.tif") as tiff:
        assert tiff.is_bigtiff
        assert np.array_equal(tiff.asarray(), samples_of(large))
    found = read_image(tmp_path / "big.tif")
    assert np.array_equal(found.pixels, large.pixels)
    assert np.array_equal(found.alpha, large.alpha)
    assert found.icc == ICC
    if dtype != "float32":  # in a BigTIFF that is no picture for it, Pillow finds no tags
        exif = Image.Exif()
        exif.load(found.exif)
        assert exif[270] == "a harbour"


def test_offsets_past_4_gib_are_in_the_head_of_the_file():
    head = codecs.tiff_head((40_000, 40_000, 3), np.dtype(np.uint8), None, None)
    with tifffile.TiffFile(io.BytesIO(head)) as tiff:
        page = tiff.pages.first
        assert tiff.is_bigtiff
        assert page.shape == (40_000, 40_000, 3)
        assert page.databytecounts == (4_800_000_000,)
        assert page.dataoffsets == (len(head),)
    below = codecs.tiff_head((40_000, 35_000, 3), np.dtype(np.uint8), None, None)
    with tifffile.TiffFile(io.BytesIO(below)) as tiff:
        assert not tiff.is_bigtiff


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_the_old_file_and_no_other(tmp_path, error):
    (tmp_path / "a.tif").write_bytes(b"old")
    whole = picture((20, 20, 3), "uint8")
    with pytest.raises(type(error)), open_tiff(tmp_path / "a.tif", whole, 1) as place:  # noqa: PT012
        place(0, 0, whole.pixels[:10])
        assert len(list(tmp_path.iterdir())) == 2
        raise error
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.tif", b"old")]


def test_a_disk_that_is_full_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    whole = picture((20, 20, 3), "uint8")
    message = r"a\.tif: cannot be written \(No space left on device\); free some space and run again$"
    with pytest.raises(ImageError, match=message), open_tiff(tmp_path / "a.tif", whole, 1) as place:
        place(0, 0, whole.pixels)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_one_line(tmp_path):
    message = r"a\.tif: cannot be written \(No such file or directory\); create the folder first$"
    with pytest.raises(ImageError, match=message), open_tiff(tmp_path / "no" / "a.tif", picture((2, 2, 3), "uint8"), 1):
        raise AssertionError
