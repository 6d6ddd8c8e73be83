"""Images of any size through a network in bounded memory: plan tiles, run them, stitch the results.

Two ways. `run_exact` gives every tile as much context as the network can see, so that the result is that of the whole
image; it is for networks with a small receptive field (super-resolution). `run_blended` overlaps windows and fades one
into the next; it is for networks that see further than any tile (segmentation).

A tile that does not fit the memory is run again in smaller pieces. A result always holds every pixel, or there is none.

Tensors are (B, C, H, W); sizes and boxes are in pixels of the input. A network is any callable that takes (B, C, h, w)
and returns (B, C', scale h, scale w). It may move a tile to another device; results are gathered where the image is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from densekit.errors import ConfigError, DeviceError

Net = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # pixels done, pixels in all

SMALLEST_TILE = 64  # halving stops here: below, the context costs far more than the tile itself

# What allocators say in a plain RuntimeError: torch's on Linux, on Windows, C++, CUDA and MPS, cuDNN and cuBLAS.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "_STATUS_ALLOC_FAILED")


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
    return _cores_with_halo(image, image, tile_size, halo, multiple_of)


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
    return _windows(Box(0, height, 0, width), tile_size, overlap, multiple_of)


def run_exact(
    net: Net,
    x: Tensor,
    *,
    scale: int,
    halo: int,
    tile_size: int | None,
    multiple_of: int = 1,
    on_tile: Progress | None = None,
) -> Tensor:
    """Returns what `net(x)` would, computed tile by tile.

    Equal but for the order of summation (1e-12 of the amplitude in float64, 1e-6 in float32) where `halo` is at least
    the network's receptive field; with a smaller halo it is an approximation with seams.

    Args:
        net: (B, C, h, w) -> (B, C', scale h, scale w).
        x: (B, C, H, W), any H and W: it is continued at the bottom and right to multiples of `multiple_of`.
        scale: output pixels per input pixel.
        halo: context around each tile.
        tile_size: largest side of a tile without its halo, or None for the whole image at once.
        multiple_of: what the network needs height and width to be divisible by.
        on_tile: called after each tile with the pixels done and the pixels in all.

    Returns: (B, C', scale H, scale W) on the device of `x`, float64 if the network gives that, else float32.

    Raises:
        ConfigError: a tile size below 1 or a negative halo.
        DeviceError: even a tile of 64 pixels, or the result, does not fit the memory.
    """
    height, width = (_round_up(side, multiple_of) for side in x.shape[-2:])
    image = Box(0, height, 0, width)
    tile_size = image.size if tile_size is None else tile_size
    result: Tensor | None = None

    def place(tile: Tile, y: Tensor) -> None:
        nonlocal result
        _check_shape(y, tile, scale)
        if result is None:
            dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
            result = _allocate((*y.shape[:2], height * scale, width * scale), x, dtype)
        tile.core.of(result, scale).copy_(tile.core.within(tile.source).of(y, scale))

    def split(core: Box, limit: int) -> list[Tile]:
        return _cores_with_halo(core, image, limit, halo, multiple_of)

    tiles = plan_tiles(height, width, tile_size, halo, multiple_of)
    _run_tiles(net, x, tiles, place, split, _smallest(tile_size, multiple_of), on_tile)
    assert result is not None
    return result[..., : x.shape[-2] * scale, : x.shape[-1] * scale]


def run_blended(
    net: Net,
    x: Tensor,
    *,
    num_outputs: int,
    tile_size: int | None,
    overlap: int,
    multiple_of: int = 1,
    on_tile: Progress | None = None,
) -> Tensor:
    """Returns the weighted mean of the outputs of overlapping windows.

    A window counts fully in its middle and fades over `overlap` pixels towards its neighbours (raised cosine, never 0),
    not towards the image border. So a constant image gives a constant result, and a network that looks at single pixels
    gives what it gives on the whole image.

    Args:
        net: (B, C, h, w) -> (B, num_outputs, h, w), for instance logits.
        x: (B, C, H, W), any H and W: it is continued at the bottom and right to multiples of `multiple_of`.
        num_outputs: channels of the result.
        tile_size: side of a window, or None for the whole image at once.
        overlap: pixels that neighbouring windows share, at least; below `tile_size`.
        multiple_of: what the network needs height and width to be divisible by.
        on_tile: called after each window with the pixels done and the pixels in all, overlaps counted.

    Returns: (B, num_outputs, H, W) float32 on the device of `x`.

    Raises:
        ConfigError: a tile size below 1, or an overlap that is not in 0 .. tile_size - 1.
        DeviceError: even a window of 64 pixels, or the result, does not fit the memory.
    """
    height, width = (_round_up(side, multiple_of) for side in x.shape[-2:])
    if tile_size is None:
        tile_size = max(height, width)
        overlap = min(overlap, tile_size - 1)
    windows = plan_windows(height, width, tile_size, overlap, multiple_of)
    total = _allocate((x.shape[0], num_outputs, height, width), x, torch.float32).zero_()
    weights = _allocate((height, width), x, torch.float32).zero_()

    def place(tile: Tile, y: Tensor) -> None:
        _check_shape(y, tile, 1)
        # Everything that allocates comes before the first sum: a window that fails here leaves no trace.
        rows = _fade(tile.core.top, tile.core.bottom, height, overlap)
        columns = _fade(tile.core.left, tile.core.right, width, overlap)
        weight = (rows[:, None] * columns).to(x.device)
        y = y.to(x.device, torch.float32)
        tile.core.of(total).addcmul_(y, weight)
        tile.core.of(weights).add_(weight)

    def split(core: Box, limit: int) -> list[Tile]:
        return _windows(core, limit, min(overlap, limit // 2), multiple_of)

    _run_tiles(net, x, windows, place, split, _smallest(tile_size, multiple_of), on_tile)
    return total.div_(weights)[..., : x.shape[-2], : x.shape[-1]]


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
    core = max(side - 2 * _round_up(halo, multiple_of), minimum)
    return _on_grid(core if maximum is None else min(core, maximum), multiple_of)


@torch.no_grad()
def _run_tiles(
    net: Net,
    x: Tensor,
    tiles: list[Tile],
    place: Callable[[Tile, Tensor], None],
    split: Callable[[Box, int], list[Tile]],
    smallest: int,
    on_tile: Progress | None,
) -> None:
    """Runs every tile and places its result, in smaller pieces from the first that runs out of memory on."""
    limit = max(tile.core.size for tile in tiles)
    done, total = 0, sum(tile.core.area for tile in tiles)
    pending = tiles[::-1]
    while pending:
        tile = pending.pop()
        if tile.core.size > limit:
            pieces = split(tile.core, limit)
            total += sum(piece.core.area for piece in pieces) - tile.core.area
            pending.extend(reversed(pieces))
            continue
        exhausted = _try_tile(net, x, tile, place)
        if exhausted is not None:
            if tile.core.size <= smallest:
                raise DeviceError(
                    f"{x.shape[-1]}x{x.shape[-2]} does not fit {exhausted} memory even at tile {smallest}; "
                    "free memory or use --precision bf16"
                )
            limit = max(smallest, tile.core.size // 2)
            pending.append(tile)
            continue
        done += tile.core.area
        if on_tile is not None:
            on_tile(done, total)


def _try_tile(net: Net, x: Tensor, tile: Tile, place: Callable[[Tile, Tensor], None]) -> str | None:
    """Returns None once the tile is placed, or the name of the memory that did not suffice."""
    try:
        place(tile, net(_cut(x, tile.source)))
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        exhausted = "cuda" if any(word in str(error) for word in ("CUDA", "CUDNN", "CUBLAS")) else x.device.type
    else:
        return None
    torch.cuda.empty_cache()  # only here: the handled error no longer holds the tensors of the failed call
    return exhausted


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def _allocate(shape: tuple[int, ...], x: Tensor, dtype: torch.dtype) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device=x.device)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        gigabytes = math.prod(shape) * dtype.itemsize / 1e9
        raise DeviceError(
            f"the {shape[-1]}x{shape[-2]} result takes {gigabytes:.1f} GB and does not fit {x.device.type} memory; "
            "free memory or cut the image into parts"
        ) from error


def _check_shape(y: Tensor, tile: Tile, scale: int) -> None:
    height, width = tile.source.bottom - tile.source.top, tile.source.right - tile.source.left
    assert y.shape[-2:] == (height * scale, width * scale), (
        f"the network gave {tuple(y.shape)} for a {height}x{width} tile at scale {scale}"
    )


def _cores_with_halo(region: Box, image: Box, tile_size: int, halo: int, multiple_of: int) -> list[Tile]:
    tile_size, halo = _on_grid(tile_size, multiple_of), _round_up(halo, multiple_of)
    tiles = []
    for top, bottom in _balanced(region.top, region.bottom, tile_size, multiple_of):
        for left, right in _balanced(region.left, region.right, tile_size, multiple_of):
            rows = max(top - halo, 0), min(bottom + halo, image.bottom)
            columns = max(left - halo, 0), min(right + halo, image.right)
            tiles.append(Tile(Box(top, bottom, left, right), Box(*rows, *columns)))
    return tiles


def _windows(region: Box, tile_size: int, overlap: int, multiple_of: int) -> list[Tile]:
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


def _fade(start: int, end: int, length: int, overlap: int) -> Tensor:
    """Returns the weights (end - start,) along a window's side: 1 in the middle, fading where the image goes on."""
    weights = torch.ones(end - start)
    width = min(overlap, (end - start) // 2)
    rise = torch.sin((torch.arange(width) + 0.5) * (math.pi / 2 / max(width, 1))) ** 2
    if start > 0:
        weights[:width] *= rise
    if end < length:
        weights[end - start - width :] *= rise.flip(0)
    return weights


def _cut(x: Tensor, box: Box) -> Tensor:
    """Returns the box of an image, continued to the grid by its last row and column: mirroring needs larger images."""
    piece = box.of(x)
    bottom, right = box.bottom - box.top - piece.shape[-2], box.right - box.left - piece.shape[-1]
    return F.pad(piece, (0, right, 0, bottom), mode="replicate") if bottom or right else piece


def _on_grid(tile_size: int, multiple_of: int) -> int:
    if tile_size < 1:
        raise ConfigError(f"tile_size={tile_size}: expected at least 1 pixel")
    return max(multiple_of, tile_size // multiple_of * multiple_of)


def _smallest(tile_size: int, multiple_of: int) -> int:
    """Returns the size at which halving stops."""
    return max(multiple_of, min(tile_size, SMALLEST_TILE))


def _round_up(pixels: int, multiple_of: int) -> int:
    return -(-pixels // multiple_of) * multiple_of
