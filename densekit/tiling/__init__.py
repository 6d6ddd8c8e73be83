"""Images of any size through a network in bounded memory: plan tiles, run them, stitch the results.

Two ways. `run_exact` gives every tile as much context as the network can see, so that the result is that of the whole
image; it is for networks with a small receptive field (super-resolution). `run_blended` overlaps windows and fades one
into the next; it is for networks that see further than any tile (segmentation). `for_each_tile` is what the first way
does for work of any kind.

A tile that does not fit the memory is run again in smaller pieces. A result always holds every pixel, or there is none.

Tensors are (B, C, H, W); sizes and boxes are in pixels of the input. A network is any callable that takes (B, C, h, w)
and returns (B, C', scale h, scale w). It may move a tile to another device; results are gathered where the image is.
"""

from densekit.tiling.plan import Box, Tile, plan_tiles, plan_windows, tile_size_for
from densekit.tiling.stream import Demand, Tiles
from densekit.tiling.whole import run_blended, run_exact
from densekit.tiling.work import OUT_OF_MEMORY, OutOfMemory, Progress, allocate, check_shape, fill, for_each_tile

__all__ = [
    "OUT_OF_MEMORY", "Box", "Demand", "OutOfMemory", "Progress", "Tile", "Tiles", "allocate", "check_shape", "fill",
    "for_each_tile", "plan_tiles", "plan_windows", "run_blended", "run_exact", "tile_size_for",
]  # fmt: skip
