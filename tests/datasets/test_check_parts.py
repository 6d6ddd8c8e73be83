"""The parts of a check, each against what it is a faster or smaller version of."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from densekit.datasets.checks.classes import INTERPOLATED
from densekit.datasets.checks.duplicates import near_pairs, perceptual_hashes
from densekit.datasets.checks.kernels import fitting_scales, orientation_of
from densekit.datasets.checks.labels import Colored, Labels, _labels, _plain_png_ids, scan_mask
from densekit.datasets.checks.pictures import thumbnail
from densekit.datasets.checks.result import CheckResult, Fault
from densekit.image import read_mask, write_mask
from densekit.resize import imresize
from tests.training_data import make_masked, make_picture


def assert_counts_agree(path):
    found, ids = scan_mask(path), read_mask(path)
    values, pixels = np.unique(ids, return_counts=True)
    assert isinstance(found, Labels)
    assert found.size == ids.shape
    assert found.values.tolist() == values.tolist()
    assert found.pixels.tolist() == pixels.tolist()
    return found


MASKS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 255))


@settings(max_examples=60, deadline=None)
@given(ids=MASKS, palette=st.booleans(), level=st.integers(0, 9))
def test_labels_are_counted_as_the_reader_sees_them(tmp_path_factory, ids, palette, level):
    path = tmp_path_factory.mktemp("m") / "a.png"
    im = Image.fromarray(ids)
    if palette:
        im.putpalette(np.arange(768, dtype=np.uint8).tobytes())
    im.save(path, compress_level=level)
    assert_counts_agree(path)
    short = _plain_png_ids(path.read_bytes())
    if palette and ids.max() < 16:  # Pillow packs few colours into fewer bits, which goes the long way
        return
    assert short is not None
    assert (short[0] == ids).all()


@pytest.mark.parametrize("kind", ["1", "2 bits", "I;16", "I", "jpeg", "bmp", "tif", "webp", "interlaced", "exif"])
def test_other_masks_are_read_the_long_way_to_the_same_counts(tmp_path, kind):
    ids = make_masked(24, 32, 5)[1]
    path = tmp_path / "a.png"
    if kind == "1":
        Image.fromarray(ids > 0).save(path)
    elif kind == "2 bits":
        write_mask(path, ids, np.eye(3, dtype=np.uint8))
    elif kind == "I;16":
        write_mask(path, ids.astype(np.uint16) * 300)
    elif kind == "I":
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, ids.astype(np.int32) - 1)
    elif kind in ("jpeg", "bmp", "tif"):
        path = tmp_path / f"a.{kind}"
        Image.fromarray(ids * 60).save(path)
    elif kind == "webp":
        Image.fromarray(ids).save(path, "WEBP", lossless=True)
        assert isinstance(scan_mask(path), Colored)  # WebP has no grey: three equal channels
        return
    elif kind == "interlaced":
        path.write_bytes(interlaced_png(ids))
    else:
        exif = Image.Exif()
        exif[0x112] = 6
        Image.fromarray(ids).save(path, exif=exif)
    found = assert_counts_agree(path)
    assert found.header is not None
    assert found.header.is_lossy == (kind == "jpeg")
    assert found.header.orientation == (6 if kind == "exif" else 1)


def interlaced_png(ids):
    """An Adam7 PNG: seven pictures after another, each row after the filter byte 0."""
    import struct
    import zlib

    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(b"\0" + row.tobytes() for y, x, dy, dx in passes for row in ids[y::dy, x::dx] if row.size)
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], 8, 0, 0, 0, 1)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(parts)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_mask_is_a_fault_and_never_an_exception(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("m") / "a.png"
    write_mask(path, make_masked(24, 32, 5)[1])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    assert isinstance(scan_mask(path), Labels | Colored | Fault)


@pytest.mark.parametrize("seed", range(4))
def test_interpolated_and_compressed_labels_are_told_from_drawn_ones(seed):
    blocks = np.random.default_rng(seed).integers(0, 9, (15, 20)).astype(np.uint8) * 20
    ids = blocks.repeat(8, 0).repeat(8, 1)[3:, 5:]  # not on the blocks of a JPEG, which would keep them
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "JPEG", quality=90)
    shares = {name: between(im) for name, im in {
        "drawn": Image.fromarray(ids),
        "nearest": Image.fromarray(ids).resize((90, 70), Image.Resampling.NEAREST),
        "jpeg": Image.open(buffer),
        "smaller": Image.fromarray(ids).resize((90, 70), Image.Resampling.BILINEAR),
        "larger": Image.fromarray(ids).resize((240, 200), Image.Resampling.BICUBIC),
    }.items()}  # fmt: skip
    assert {name for name, share in shares.items() if share > INTERPOLATED} == {"jpeg", "smaller", "larger"}


def between(im):
    return _labels(None, np.asarray(im), None).between


def test_counts_reach_past_what_float32_can_count():
    ids = np.zeros((4097, 4097), np.uint8)
    ids[0, 0] = 1
    assert _labels(None, ids, None).pixels.tolist() == [4097 * 4097 - 1, 1]


def test_hashes_are_those_of_a_cosine_transform():
    from scipy.fft import dctn

    thumbs = np.random.default_rng(0).integers(0, 256, (20, 32, 32), dtype=np.uint8)
    for thumb, found in zip(thumbs, perceptual_hashes(thumbs), strict=True):
        low = dctn(thumb.astype(float))[:8, :8].ravel()
        expected = low > np.median(low[1:])
        assert np.unpackbits(np.array([found]).view(np.uint8)).tolist() == expected.astype(int).tolist()


def test_near_copies_are_found_and_nothing_else_is():
    pictures = [make_picture(96, 120, seed) for seed in range(40)]
    copies = []
    for picture in pictures[:4]:
        buffer = io.BytesIO()
        Image.fromarray(picture).resize((100, 80), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=60)
        copies.append(np.asarray(Image.open(buffer)))
    copies.append(np.clip(pictures[4] * 0.8 + 20, 0, 255).astype(np.uint8))
    flat = [np.full((64, 64, 3), level, np.uint8) for level in (0, 0, 128)]
    pairs = near_pairs(np.array([thumbnail(picture) for picture in (*pictures, *copies, *flat)]))
    assert sorted(pairs) == [(i, 40 + i) for i in range(5)]


def test_pairs_are_the_same_in_blocks_as_at_once(monkeypatch):
    thumbs = np.random.default_rng(1).integers(0, 256, (30, 32, 32), dtype=np.uint8)
    thumbs = np.concatenate((thumbs, thumbs[:7]))
    whole = near_pairs(thumbs)
    monkeypatch.setattr("densekit.datasets.checks.duplicates._BLOCK", 4)
    assert sorted(near_pairs(thumbs)) == sorted(whole) == [(i, 30 + i) for i in range(7)]


@pytest.mark.parametrize(
    ("hr", "lr", "scales"),
    [
        ((360, 480), (180, 240), [2]),
        ((361, 483), (180, 241), [2]),
        ((1355, 2040), (339, 510), []),
        ((1355, 2040), (338, 510), [4]),
        ((256, 256), (256, 256), [1]),
        ((5, 5), (1, 1), [3, 4, 5]),
        ((100, 100), (50, 40), []),
    ],
)
def test_scales_that_fit_are_whole_and_cut_the_larger_picture(hr, lr, scales):
    assert fitting_scales(hr, lr) == scales


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", range(4))
def test_each_of_the_eight_orientations_is_named(mirrored, quarters):
    hr = make_picture(96, 96, 3)
    lr = np.rot90(imresize(hr, 1 / 2)[:, ::-1] if mirrored else imresize(hr, 1 / 2), quarters)
    words = ["mirrored"] * mirrored + [f"turned by {90 * quarters} degrees"] * (quarters > 0)
    name, _, correlation = orientation_of(hr, np.ascontiguousarray(lr))
    assert name == (" and ".join(words) or "as it is")
    assert correlation > 0.9


def test_faults_are_sorted_by_severity_kind_and_path(tmp_path):
    result = CheckResult()
    result.warn("case", tmp_path / "b", "w", "n")
    result.error("size", tmp_path / "b", "e", "n")
    result.error("label", None, "e", "n")
    result.error("size", tmp_path / "a", "e", "n")
    result.sort()
    order = [(fault.kind, fault.path.name if fault.path else None) for fault in result.faults]
    assert order == [("size", "a"), ("size", "b"), ("label", None), ("case", "b")]
    assert (len(result.errors), len(result.warnings), result.kinds) == (3, 1, {"size": 2, "label": 1, "case": 1})
    assert str(result.faults[0]) == f"{tmp_path / 'a'}: e; n"
