from __future__ import annotations

import itertools

import numpy as np
import pytest

from densekit.errors import ConfigError
from densekit.predict.overlay import PALETTE, PAPER, overlay

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


def to_lab(colours, sight) -> np.ndarray:
    c = np.asarray(colours) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ np.transpose(sight)
    t = linear.clip(0, 1) @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    x, y, z = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def scene():
    """A 120x160 image, and ids with two rectangles of class 1 and 2 on class 0."""
    pixels = np.random.default_rng(3).integers(60, 190, (120, 160, 3), np.uint8)
    ids = np.zeros((120, 160), np.uint8)
    ids[20:60, 20:60] = 1
    ids[70:110, 40:140] = 2
    return pixels, ids


@pytest.mark.parametrize("sight", SIGHTS)
def test_no_two_colours_of_the_palette_look_alike(sight):
    lab = to_lab(PALETTE, SIGHTS[sight])
    assert len(PALETTE) == 24
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 15
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab[:7], 2)) > 17


def test_a_class_is_painted_and_outlined_and_the_background_is_left_clear():
    pixels, ids = scene()
    drawn = overlay(pixels, ids, ["background", "one", "two"], opacity=0.4)
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn[:120][ids == 0], pixels[ids == 0])
    blend = pixels[30, 30] + 0.4 * (np.array(PALETTE[1]) - pixels[30, 30])
    assert np.abs(drawn[30, 30] - blend).max() <= 0.5
    for row, column in ((20, 30), (59, 30), (40, 20), (40, 59)):
        assert tuple(drawn[row, column]) == PALETTE[1]
    assert tuple(drawn[70, 100]) == PALETTE[2]


def test_every_class_is_painted_where_none_is_the_background():
    pixels, ids = scene()
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    drawn = overlay(pixels, ids, ["road", "sky", "tree"], palette, opacity=1)
    assert np.array_equal(drawn[:120], np.array(palette, np.uint8)[ids])


def test_the_legend_shows_the_classes_in_the_image_only():
    pixels, ids = scene()
    drawn = overlay(pixels, ids, ["road", "sky", "tree", "car"])
    legend = drawn[120:]
    colours = {tuple(colour) for colour in legend.reshape(-1, 3).tolist()}
    assert drawn.shape[1] == 160
    assert {PAPER, *PALETTE[:3]} <= colours
    assert PALETTE[3] not in colours


def test_the_legend_states_the_share_of_each_class(monkeypatch):
    from PIL import ImageDraw

    texts = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, text, **options: (texts.append(text), draw(self, xy, text, **options)),
    )
    pixels, ids = scene()
    ids[0, 0] = 3
    overlay(pixels, ids, ["background", "one", "two", "speck"])
    assert texts == ["background  70.8 %", "one  8.3 %", "two  20.8 %", "speck  < 0.1 %"]


def test_a_legend_breaks_into_rows_and_fits_the_image():
    ids = np.arange(12).repeat(10)[None].repeat(50, axis=0)
    pixels = np.full((50, 120, 3), 128, np.uint8)
    names = [f"class of number {i}" for i in range(12)]
    drawn = overlay(pixels, ids, names)
    wide = overlay(pixels.repeat(20, axis=1), ids.repeat(20, axis=1), names)
    assert drawn.shape[1] == 120
    assert drawn.shape[0] - 50 == 12 * 26
    assert wide.shape[0] - 50 < 12 * 26
    colours = {tuple(colour) for colour in drawn[50:].reshape(-1, 3).tolist()}
    assert set(PALETTE[:12]) <= colours


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_the_narrowest_images_can_be_drawn_on(shape):
    drawn = overlay(np.full((*shape, 3), 99, np.uint8), np.ones(shape, np.uint8), ["background", "nucleus"])
    assert drawn.shape[1:] == (shape[1], 3)


def test_ids_beyond_the_classes_are_left_clear():
    pixels, ids = scene()
    ids[ids == 2] = 255
    drawn = overlay(pixels, ids, ["road", "sky"])
    assert np.array_equal(drawn[:120][ids == 255], pixels[ids == 255])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_and_grey_pixels_are_shown_in_8_bits(dtype):
    pixels, ids = scene()
    grey = pixels[..., :1]
    deep = grey.astype(np.uint16) * 257 if dtype == np.uint16 else (grey / 255).astype(np.float32)
    classes = ["background", "one", "two"]
    assert np.array_equal(overlay(deep, ids, classes), overlay(grey.repeat(3, axis=2), ids, classes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ids": np.zeros((5, 5), int)},
            r"^ids of shape \(5, 5\) for an image of \(120, 160\); expected the same height",
        ),
        ({"palette": [(1, 2, 3)]}, r"^a palette of 1 colours for 2 classes; expected one for each$"),
        ({"opacity": 1.5}, r"^opacity 1\.5: expected 0 to 1$"),
    ],
)
def test_what_does_not_fit_together_is_one_line(change, message):
    pixels, ids = scene()
    with pytest.raises(ConfigError, match=message):
        overlay(**{"pixels": pixels, "ids": ids, "classes": ["road", "sky"], **change})
