"""Networks over an image block by block: every block goes over tiles with its own small context."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from densekit.tiling.plan import Box, Tile, plan_tiles
from densekit.tiling.work import check_shape, for_each_tile


class Demand(NamedTuple):
    """What it takes to stream a network.

    Attributes:
        context: most pixels of the input that a tile needs on each side.
        channels: of the full-size maps that are alive at once, at most, for a pixel of the input; input and result are
            not counted.
        passes: maps that are made, one after the other.
    """

    context: int
    channels: float
    passes: int


class Tiles:
    """How full-size maps are made from each other: tile by tile, in as little memory as the maps themselves take.

    Args:
        size: largest side of a tile in pixels of the maps, its context not counted.
        passes: how many maps will be made, for `on_share`.
        on_share: called after each tile with the share of all passes that is done, in 0..1.
    """

    def __init__(self, size: int, *, passes: int = 1, on_share: Callable[[float], None] | None = None) -> None:
        self.size: int = size
        self._passes, self._on_share = passes, on_share
        self._made = 0

    def map(
        self,
        function: Callable[..., Tensor],
        radius: int,
        *maps: Tensor,
        scale: int = 1,
        into: Tensor | None = None,
        onto: Tensor | None = None,
    ) -> Tensor:
        """Returns what `function(*maps)` would.

        A tile is cut off at the border of the maps, not continued, so that a function's own padding acts there as it
        does on whole maps.

        Args:
            function: maps (B, C, h, w) of one size and any numbers of channels -> (B, C', scale h, scale w).
            radius: how far it sees, in pixels of the maps.
            maps: (B, C, H, W), of one size; left as they are.
            scale: pixels of the result per pixel of the maps.
            into: one of the maps, which the result takes the place of; what tiles to come still need of it is kept.
            onto: a map that the result is added to; `function` must not see these channels.

        Returns: (B, C', scale H, scale W), channels last, or `into` or `onto`.

        Raises:
            OutOfMemory: even a tile of 64 pixels does not fit.
        """
        height, width = maps[0].shape[-2:]
        tile_size = max(1, self.size // max(1, scale // 2))  # what is enlarged inside a tile fills the caches sooner
        result = onto if into is None else into
        before = None if into is None else _Before(into, tile_size, radius)

        def run(tile: Tile) -> None:
            nonlocal result
            sources = (before.of(tile) if before and x is into else tile.source.of(x) for x in maps)
            y = function(*(source.contiguous(memory_format=torch.channels_last) for source in sources))
            check_shape(y, tile, scale)
            if result is None:
                shape = *y.shape[:2], height * scale, width * scale
                result = _empty(shape, y)
            kept, target = tile.core.within(tile.source).of(y, scale), tile.core.of(result, scale)
            if onto is None:
                target.copy_(kept)
            else:
                target.add_(kept)

        def report(done: int, total: int) -> None:
            if self._on_share is not None:
                self._on_share((self._made + done / total) / self._passes)

        fitted = for_each_tile(
            run, height, width, tile_size=tile_size, halo=radius, device=maps[0].device, on_tile=report
        )
        if fitted < min(tile_size, max(height, width)):
            self.size = fitted
        self._made += 1
        assert result is not None
        return result


class _Before:
    """A map as it was before results were written over it, for a row of tiles and its context at a time."""

    def __init__(self, maps: Tensor, tile_size: int, radius: int) -> None:
        tiles = plan_tiles(maps.shape[-2], maps.shape[-1], tile_size, radius)
        self._rows = [tile for tile in tiles if tile.core.left == 0][::-1]
        self._maps = maps
        self._copy, self._top = maps[..., :0, :], 0  # rows of the map as they were, from `_top` on
        self._bottom = 0  # of the row of tiles

    def of(self, tile: Tile) -> Tensor:
        """Returns what the source of a tile was, (B, C, h, w); tiles come in rows, whole or in pieces."""
        if tile.core.top >= self._bottom:
            core, source = self._rows[-1].core, self._rows[-1].source
            overwritten, start = core.top - source.top, source.top - self._top
            self._copy, self._top = self._copy[..., start : start + overwritten, :].clone(), source.top
            shape = *self._maps.shape[:2], source.bottom - source.top, self._maps.shape[3]
            copy = _empty(shape, self._maps)
            copy[..., :overwritten, :] = self._copy
            copy[..., overwritten:, :] = self._maps[..., core.top : source.bottom, :]
            self._copy, self._bottom = copy, core.bottom
            self._rows.pop()  # last: where memory runs out above, the same tile comes again
        return tile.source.within(Box(self._top, self._bottom, 0, 0)).of(self._copy)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
