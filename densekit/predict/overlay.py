"""A segmentation drawn over its image, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from densekit.errors import ConfigError
from densekit.predict.inputs import Array, to_rgb8

RGB = tuple[int, int, int]

# Okabe and Ito's seven colours, then each time the one of a 6x6x6 cube farthest from all before it, in CIELAB and at
# worst over normal sight, protanopia and deuteranopia (Machado et al. 2009). No two are nearer than 15; 2 can be seen.
# fmt: off
PALETTE: tuple[RGB, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (0, 0, 255), (0, 51, 51), (0, 255, 153), (51, 0, 153), (102, 102, 255), (102, 51, 0), (102, 255, 255),
    (0, 51, 102), (51, 255, 204), (102, 153, 255), (51, 102, 102), (255, 153, 102), (153, 102, 51), (0, 102, 204),
    (51, 0, 204), (102, 204, 153), (255, 204, 102),
)
# fmt: on
CLEAR = "background"  # the class of this name is not painted
PAPER, INK = (255, 255, 255), (32, 32, 32)


class _Entry(NamedTuple):
    text: str
    colour: RGB | None  # None for a class that is not painted


def overlay(
    pixels: Array,
    ids: NDArray[np.integer],
    classes: Sequence[str],
    palette: Sequence[RGB] | None = None,
    *,
    opacity: float = 0.55,
) -> NDArray[np.uint8]:
    """Returns an image painted by class, every region outlined, above a legend of the classes in it and their shares.

    The class "background" is left clear, and so are ids beyond `classes`, which the legend leaves out.

    Args:
        pixels: (H, W, 1 or 3) uint8, or uint16 or float32 0..1.
        ids: (H, W) class numbers.
        classes: names, in the order of their ids.
        palette: RGB of each class, 0..255; by default `PALETTE`, repeated from the start beyond its 24 colours.
        opacity: of the paint, 0..1.

    Returns: (H', W, 3) uint8; the first H rows are the image.

    Raises:
        ConfigError: ids of another size than the image, a palette shorter than the classes, or an opacity beyond 0..1.
    """
    if ids.shape != pixels.shape[:2]:
        raise ConfigError(
            f"ids of shape {ids.shape} for an image of {pixels.shape[:2]}; expected the same height and width"
        )
    if palette is None:
        palette = [PALETTE[index % len(PALETTE)] for index in range(len(classes))]
    if len(palette) < len(classes):
        raise ConfigError(f"a palette of {len(palette)} colours for {len(classes)} classes; expected one for each")
    if not 0 <= opacity <= 1:
        raise ConfigError(f"opacity {opacity}: expected 0 to 1")

    painted = np.array([name != CLEAR for name in classes])
    known = (ids >= 0) & (ids < len(classes))
    numbers = np.where(known, ids, 0).astype(np.intp)
    strength = np.where(known & painted[numbers], opacity, 0.0).astype(np.float32)
    strength[_outlines(ids, max(1, round(min(ids.shape) / 500))) & (strength > 0)] = 1
    colours = np.array(palette, np.float32)[numbers]
    image = to_rgb8(pixels)
    image = (image + (colours - image) * strength[..., None] + 0.5).astype(np.uint8)

    shares = np.bincount(numbers[known], minlength=len(classes)) / ids.size
    entries = [
        _Entry(f"{name}  {_percent(share)}", palette[index] if painted[index] else None)
        for index, (name, share) in enumerate(zip(classes, shares, strict=True))
        if share > 0
    ]
    return np.concatenate([image, _legend(entries, image.shape[1], min(32, max(13, image.shape[1] // 40)))])


def _outlines(ids: NDArray[np.integer], thickness: int) -> NDArray[np.bool_]:
    """Marks the pixels that have another class within `thickness` pixels along their row or column."""
    edge = np.zeros(ids.shape, np.bool_)
    for step in range(1, thickness + 1):
        for a, b in ((np.s_[step:], np.s_[:-step]), (np.s_[:, step:], np.s_[:, :-step])):
            differs = ids[a] != ids[b]
            edge[a] |= differs
            edge[b] |= differs
    return edge


def _percent(share: float) -> str:
    return "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def _legend(entries: list[_Entry], width: int, size: int) -> NDArray[np.uint8]:
    """Draws swatches and texts in rows as wide as the image; what is wider than that is cut off."""
    font = ImageFont.load_default(size)
    gap, line = size // 2, 2 * size
    places, x, y = [], gap, 0
    for entry in entries:
        extent = 2 * size + round(font.getlength(entry.text)) + gap
        if x > gap and x + extent > width:
            x, y = gap, y + line
        places.append((x, y + gap))
        x += extent + gap
    strip = Image.new("RGB", (width, y + line if entries else 0), PAPER)
    draw = ImageDraw.Draw(strip)
    for entry, (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y, x + round(1.5 * size), y + size), fill=entry.colour or PAPER, outline=INK)
        draw.text((x + 2 * size, y + size // 2), entry.text, fill=INK, font=font, anchor="lm")
    return np.array(strip)
