"""Masks in colours as class numbers, by a table of colours such as {'#ff0000': 1}; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.datasets.pictures import Pixels, to_rgb
from densekit.errors import DataError
from densekit.files import printable
from densekit.image import read_image

Color = tuple[int, int, int]  # red, green, blue, 0..255

SHOWN = 4  # colours that a message spells out
MAX_COLORS = 64  # a mask with more of them is no drawing of classes
_HINT = "(`densekit seg check` proposes a map)"
_BAND = 1 << 17  # pixels looked up at a time: their codes stay in the cache, which is ten times as fast as 2**20


class ClassMap:
    """Which class number each colour means.

    Args:
        colors: '#rrggbb' -> class number, 0..255; empty: masks hold class numbers, and the map is false.
    """

    def __init__(self, colors: Mapping[str, int]) -> None:
        self.colors: dict[str, int] = {color.lower(): label for color, label in colors.items()}
        # A colour's code is its place in the table; of the 32 MiB only the pages that hold colours are ever touched.
        self._table: NDArray[np.uint16] = np.zeros(1 << 24 if colors else 0, np.uint16)
        for color, label in self.colors.items():
            self._table[int.from_bytes(bytes.fromhex(color[1:]), "little")] = label + 1

    def __bool__(self) -> bool:
        return bool(self.colors)

    def look_up(self, rgb: Pixels) -> NDArray[np.uint16]:
        """Returns for pixels (H, W, 3) uint8 their class number plus 1 (H, W), and 0 where the map lacks the colour."""
        found = np.empty(rgb.shape[:2], np.uint16)
        rows = max(1, _BAND // rgb.shape[1])
        for top in range(0, len(rgb), rows):
            np.take(self._table, _codes(rgb[top : top + rows]), out=found[top : top + rows], mode="clip")
        return found

    def read(self, path: Path) -> Pixels:
        """Returns the class numbers (H, W) uint8 of a mask file in colours, upright; a palette is read as its colours.

        Raises:
            ImageError: no readable image.
            DataError: more than 8 bits a sample, or a colour that is not in the map.
        """
        rgb = read_colors(path)
        found = self.look_up(rgb)
        unknown = found == 0
        if unknown.any():
            raise DataError(f"{printable(path)}: {describe_unknown(rgb[unknown])}")
        return (found - 1).astype(np.uint8)


def read_colors(path: Path) -> Pixels:
    """Returns the colours (H, W, 3) uint8 of a mask file, upright, grey as three equal channels, alpha dropped.

    Raises:
        ImageError: no readable image.
        DataError: more than 8 bits a sample.
    """
    picture = read_image(path)
    if picture.pixels.dtype != np.uint8:
        raise DataError(
            f"{printable(path)}: has {picture.pixels.dtype} samples, but the colours of data.class_map have 8 bits; "
            "save it with 8 bits, or remove data.class_map if it holds class numbers"
        )
    return to_rgb(picture)


def describe_unknown(pixels: Pixels) -> str:
    """Returns what is wrong with pixels (N, 3) whose colours are not in the map, and the next step, on one line."""
    counts = count_colors(pixels)
    shown = ", ".join(map(hex_color, list(counts)[:SHOWN])) + (", ..." if len(counts) > SHOWN else "")
    where = f"in {len(pixels)} pixels"
    if len(counts) > MAX_COLORS:
        return (
            f"colours {shown} (more than {MAX_COLORS} of them) {where} are not in data.class_map; they look compressed "
            "or interpolated: make the mask again from its source"
        )
    if len(counts) > 1:
        return f"colours {shown} ({len(counts)} of them) {where} are not in data.class_map; add them there {_HINT}"
    return f"colour {shown} {where} is not in data.class_map; add it there {_HINT}"


def count_colors(pixels: Pixels) -> dict[Color, int]:
    """Returns the colours (R, G, B) of pixels (..., 3) by falling number of pixels, 65 at most, with that number."""
    codes, counts = np.unique(_codes(pixels.reshape(1, -1, 3)), return_counts=True)
    red, green, blue = codes & 255, codes >> 8 & 255, codes >> 16
    order = np.lexsort((blue, green, red, -counts))[: MAX_COLORS + 1]
    found: Any = zip(red[order].tolist(), green[order].tolist(), blue[order].tolist(), strict=True)
    return dict(zip(found, counts[order].tolist(), strict=True))


def hex_color(color: Color) -> str:
    """Returns (R, G, B) as '#rrggbb', as a class map has it."""
    return f"#{bytes(color).hex()}"


def _codes(rgb: Pixels) -> NDArray[np.uint32]:
    """Returns red + 256 green + 65536 blue of pixels (H, W, 3)."""
    import cv2

    # OpenCV puts in the fourth byte 35 times as fast as numpy shifts and adds the three
    padded: Any = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_BGR2BGRA)
    codes: NDArray[np.uint32] = padded.view("<u4")[..., 0] & 0xFFFFFF
    return codes
