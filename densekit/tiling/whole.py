"""A network over all of an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from densekit.tiling.plan import Box, Tile, plan_windows, round_up, windows
from densekit.tiling.work import Net, Progress, allocate, check_shape, fill, for_each_tile, run_tiles, smallest_side


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
    height, width = (round_up(side, multiple_of) for side in x.shape[-2:])
    result: Tensor | None = None

    def run(tile: Tile) -> None:
        nonlocal result
        y = net(fill(tile.source.of(x), tile.source))
        check_shape(y, tile, scale)
        if result is None:
            dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
            result = allocate((*y.shape[:2], height * scale, width * scale), x, dtype)
        tile.core.of(result, scale).copy_(tile.core.within(tile.source).of(y, scale))

    for_each_tile(
        run, *x.shape[-2:], tile_size=tile_size, halo=halo, multiple_of=multiple_of, device=x.device, on_tile=on_tile
    )
    assert result is not None
    return result[..., : x.shape[-2] * scale, : x.shape[-1] * scale]


def run_blended(
    net: Net,
    x: Tensor,
    *,
    num_outputs: int,
    scale: int = 1,
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
        net: (B, C, h, w) -> (B, num_outputs, scale h, scale w), for instance logits.
        x: (B, C, H, W), any H and W: it is continued at the bottom and right to multiples of `multiple_of`.
        num_outputs: channels of the result.
        scale: output pixels per input pixel.
        tile_size: side of a window, or None for the whole image at once.
        overlap: pixels that neighbouring windows share, at least; below `tile_size`.
        multiple_of: what the network needs height and width to be divisible by.
        on_tile: called after each window with the pixels done and the pixels in all, overlaps counted.

    Returns: (B, num_outputs, scale H, scale W) float32 on the device of `x`.

    Raises:
        ConfigError: a tile size below 1, or an overlap that is not in 0 .. tile_size - 1.
        DeviceError: even a window of 64 pixels, or the result, does not fit the memory.
    """
    height, width = (round_up(side, multiple_of) for side in x.shape[-2:])
    if tile_size is None:
        tile_size = max(height, width)
        overlap = min(overlap, tile_size - 1)
    cut = plan_windows(height, width, tile_size, overlap, multiple_of)
    total = allocate((x.shape[0], num_outputs, height * scale, width * scale), x, torch.float32).zero_()
    weights = allocate((height * scale, width * scale), x, torch.float32).zero_()

    def run(tile: Tile) -> None:
        y = net(fill(tile.source.of(x), tile.source))
        check_shape(y, tile, scale)
        # Everything that allocates comes before the first sum: a window that fails here leaves no trace.
        rows, columns = (
            _fade(start * scale, end * scale, length * scale, overlap * scale)
            for start, end, length in (
                (tile.core.top, tile.core.bottom, height),
                (tile.core.left, tile.core.right, width),
            )
        )
        weight = (rows[:, None] * columns).to(x.device)
        y = y.to(x.device, torch.float32)
        tile.core.of(total, scale).addcmul_(y, weight)
        tile.core.of(weights, scale).add_(weight)

    def split(core: Box, limit: int) -> list[Tile]:
        return windows(core, limit, min(overlap, limit // 2), multiple_of)

    where = f"{x.shape[-1]}x{x.shape[-2]}", x.device.type
    run_tiles(run, cut, split, smallest_side(tile_size, multiple_of), where, on_tile)
    return total.div_(weights)[..., : x.shape[-2] * scale, : x.shape[-1] * scale]


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
