"""The eighteen formats of pictures, each through both tasks, in one command a task."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from densekit.image import read_image, read_mask

H, W = 16, 24
WHOLE = ((2 * H, 2 * W, 3), "uint8", False)

# What sr gives: shape and dtype of the pixels and whether there is alpha; or None where the file is refused.
FORMATS = {
    "cmyk.jpg": WHOLE,
    "palette.png": WHOLE,
    "rgba.png": ((2 * H, 2 * W, 3), "uint8", True),
    "la.png": ((2 * H, 2 * W, 1), "uint8", True),
    "bits.png": ((2 * H, 2 * W, 1), "uint8", False),
    "grey16.png": ((2 * H, 2 * W, 1), "uint16", False),
    "rgb16.png": ((2 * H, 2 * W, 3), "uint16", False),
    "float.tif": ((2 * H, 2 * W, 3), "float32", False),
    "turned.jpg": ((2 * W, 2 * H, 3), "uint8", False),
    "turned_too.png": ((2 * W, 2 * H, 3), "uint8", False),
    "column.png": ((2 * H, 2, 3), "uint8", False),
    "animated.gif": None,
    "moving.webp": None,
    "pages.tif": None,
    "truncated.jpg": None,
    "cut.png": None,
    "empty.png": None,
    "nothing.png": None,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(5)
    rgb = [Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8)) for _ in range(2)]
    deep = rng.integers(0, 65536, (H, W, 3), np.uint16)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    several = {"save_all": True, "append_images": rgb[1:]}
    path = tmp_path / "in"
    path.mkdir()
    rgb[0].convert("CMYK").save(path / "cmyk.jpg")
    rgb[0].quantize(20).save(path / "palette.png")
    Image.fromarray(rng.integers(0, 256, (H, W, 4), np.uint8)).save(path / "rgba.png")
    Image.fromarray(rng.integers(0, 256, (H, W, 2), np.uint8)).save(path / "la.png")
    Image.fromarray(rng.random((H, W)) > 0.5).save(path / "bits.png")
    cv2.imwrite(str(path / "grey16.png"), deep[..., 0])
    cv2.imwrite(str(path / "rgb16.png"), deep)
    tifffile.imwrite(path / "float.tif", rng.random((H, W, 3), np.float32), photometric="rgb")
    rgb[0].save(path / "turned.jpg", exif=orientation)
    rgb[0].save(path / "turned_too.png", exif=orientation)
    rgb[0].crop((0, 0, 1, H)).save(path / "column.png")
    rgb[0].save(path / "animated.gif", **several)
    rgb[0].save(path / "moving.webp", **several)
    rgb[0].save(path / "pages.tif", **several)
    for name in ("truncated.jpg", "cut.png"):
        rgb[0].save(path / name)
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[: len(data) // 2])
    (path / "empty.png").touch()
    (path / "nothing.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert sorted(p.name for p in path.iterdir()) == sorted(FORMATS)
    return path


def predict(run, folder, *args):
    """Runs a command over every file and returns its records by file name; a GIF in a folder is not looked for."""
    result = run(*args, *sorted(folder.iterdir()), "-o", "out/", "--json")
    records = {Path(record["input"]).name: record for record in map(json.loads, result.out)}
    assert sorted(records) == sorted(FORMATS)
    refused = [name for name, expected in FORMATS.items() if expected is None]
    assert sorted(name for name, record in records.items() if not record["ok"]) == sorted(refused)
    assert sum(line.startswith("error: ") for line in result.err) == len(refused)
    assert result.err[-1] == f"{len(FORMATS) - len(refused)} done, {len(refused)} failed"
    assert result.code == 1
    return records


def test_sr_keeps_what_each_format_holds_and_refuses_the_rest_by_name(run, folder, tiny_sr):
    records = predict(run, folder, "sr", "predict", "-m", tiny_sr)
    for name, expected in FORMATS.items():
        if expected is not None:
            picture = read_image(records[name]["output"])
            found = (picture.pixels.shape, picture.pixels.dtype.name, picture.alpha is not None)
            assert (name, found) == (name, expected)


def test_seg_gives_a_mask_of_the_upright_size_or_a_line(run, folder, tiny_seg):
    records = predict(run, folder, "seg", "predict", "-m", tiny_seg)
    for name, expected in FORMATS.items():
        if expected is not None:
            (height, width, _), *_ = expected
            assert (name, read_mask(records[name]["output"]).shape) == (name, (height // 2, width // 2))
