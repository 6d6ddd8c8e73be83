"""Which pieces of an image are worked on: cores that touch, with context around them, or windows that overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from densekit.errors import ConfigError

SMALLEST_TILE = 64  # halving stops here: below, the context costs far more than the tile itself


class Box(NamedTuple):
    """A rectangle of pixels; bottom and right are the first row and column outside."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> int:
        """Longer side in pixels."""
        return max(self.bottom - self.top, self.right - self.left)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    def of(self, image: Tensor, scale: int = 1) -> Tensor:
        """Returns the view (..., scale h, scale w) of an image (..., scale H, scale W) that lies in the box."""
        return image[..., self.top * scale : self.bottom * scale, self.left * scale : self.right * scale]

    def within(self, outer: Box) -> Box:
        """Returns the same rectangle with the top left corner of `outer` as origin."""
        return Box(self.top - outer.top, self.bottom - outer.top, self.left - outer.left, self.right - outer.left)


@dataclass(frozen=True)
class Tile:
    """A piece of work: `source` goes into the network, and of the result `core` is kept."""

    core: Box
    source: Box


def plan_tiles(height: int, width: int, tile_size: int, halo: int, multiple_of: int = 1) -> list[Tile]:
    """Returns tiles whose cores cover the image exactly once, in rows from the top left.

    Cores are at most `tile_size` on a side (but at least `multiple_of`) and nearly equal, with no sliver at the end.
    Sources are cores grown by at least `halo` and clipped at the image border, so that the network's own padding acts
    only there. Both lie on the grid of `multiple_of`.

    Args:
        height: of the image, a multiple of `multiple_of`.
        width: likewise.
        tile_size: largest side of a core.
        halo: context on each side.
        multiple_of: what the network needs height and width to be divisible by.

    Raises:
        ConfigError: a tile size below 1 or a negative halo.
    """
    if halo < 0:
        raise ConfigError(f"halo={halo}: expected 0 or more pixels")
    assert height % multiple_of == 0
    assert width % multiple_of == 0
    image = Box(0, height, 0, width)
    return cores_with_halo(image, image, tile_size, halo, multiple_of)


def plan_windows(height: int, width: int, tile_size: int, overlap: int, multiple_of: int = 1) -> list[Tile]:
    """Returns windows of one size that cover the image and overlap their neighbours by `overlap` or more pixels.

    The last window of a row or column is shifted inwards. Windows lie on the grid of `multiple_of`, and are as small as
    the image where that is smaller than `tile_size`. Core and source of a window are the same box.

    Raises:
        ConfigError: a tile size below 1, or an overlap that is not in 0 .. tile_size - 1.
    """
    if not 0 <= overlap < _on_grid(tile_size, multiple_of):
        raise ConfigError(f"overlap={overlap}: expected 0 or more pixels, and less than the tile's {tile_size}")
    assert height % multiple_of == 0
    assert width % multiple_of == 0
    return windows(Box(0, height, 0, width), tile_size, overlap, multiple_of)


def tile_size_for(
    budget_bytes: float,
    bytes_per_pixel: float,
    halo: int,
    multiple_of: int = 1,
    minimum: int = SMALLEST_TILE,
    maximum: int | None = None,
) -> int:
    """Returns the largest side of a core, a multiple of `multiple_of`, that fits the budget with its halo around it.

    At least `minimum`, even where that exceeds the budget, and at most `maximum`, both rounded down to the grid.
    `bytes_per_pixel` comes from `memory.activation_bytes_per_pixel`.
    """
    side = math.isqrt(max(0, int(budget_bytes / bytes_per_pixel)))
    core = max(side - 2 * round_up(halo, multiple_of), minimum)
    return _on_grid(core if maximum is None else min(core, maximum), multiple_of)


def cores_with_halo(region: Box, image: Box, tile_size: int, halo: int, multiple_of: int) -> list[Tile]:
    """Returns the tiles of a region of an image, as `plan_tiles` does for the whole."""
    tile_size, halo = _on_grid(tile_size, multiple_of), round_up(halo, multiple_of)
    tiles = []
    for top, bottom in _balanced(region.top, region.bottom, tile_size, multiple_of):
        for left, right in _balanced(region.left, region.right, tile_size, multiple_of):
            rows = max(top - halo, 0), min(bottom + halo, image.bottom)
            columns = max(left - halo, 0), min(right + halo, image.right)
            tiles.append(Tile(Box(top, bottom, left, right), Box(*rows, *columns)))
    return tiles


def windows(region: Box, tile_size: int, overlap: int, multiple_of: int) -> list[Tile]:
    """Returns the windows of a region, as `plan_windows` does for a whole image."""
    tile_size = _on_grid(tile_size, multiple_of)
    boxes = [
        Box(top, bottom, left, right)
        for top, bottom in _overlapping(region.top, region.bottom, tile_size, overlap, multiple_of)
        for left, right in _overlapping(region.left, region.right, tile_size, overlap, multiple_of)
    ]
    return [Tile(box, box) for box in boxes]


def _balanced(start: int, end: int, size: int, step: int) -> Iterator[tuple[int, int]]:
    """Cuts [start, end) into the fewest parts of at most `size`, equal to within `step`, at multiples of `step`."""
    units = (end - start) // step
    parts = math.ceil(units / (size // step))
    for i in range(parts):
        yield start + i * units // parts * step, start + (i + 1) * units // parts * step


def _overlapping(start: int, end: int, size: int, overlap: int, step: int) -> Iterator[tuple[int, int]]:
    """Covers [start, end) with spans of one size; the last one is shifted inwards."""
    size = min(size, end - start)
    stride = max(step, (size - overlap) // step * step)
    for first in range(start, end - size, stride):
        yield first, first + size
    yield end - size, end


def _on_grid(tile_size: int, multiple_of: int) -> int:
    if tile_size < 1:
        raise ConfigError(f"tile_size={tile_size}: expected at least 1 pixel")
    return max(multiple_of, tile_size // multiple_of * multiple_of)


def round_up(pixels: int, multiple_of: int) -> int:
    """Returns the least multiple that is not below `pixels`."""
    return -(-pixels // multiple_of) * multiple_of
