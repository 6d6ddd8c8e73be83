"""Running pieces of work in the memory there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from densekit.errors import DeviceError
from densekit.tiling.plan import SMALLEST_TILE, Box, Tile, cores_with_halo, plan_tiles, round_up

Net: TypeAlias = Callable[[Tensor], Tensor]
Progress: TypeAlias = Callable[[int, int], None]  # pixels done, pixels in all

# What allocators say in a plain RuntimeError: torch's on Linux, on Windows, C++, CUDA and MPS, cuDNN and cuBLAS.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "_STATUS_ALLOC_FAILED")


class OutOfMemory(DeviceError):
    """Memory that holds not even the smallest tile; what is around it may still be cut into smaller pieces."""

    def __init__(self, message: str, memory: str) -> None:
        super().__init__(message)
        self.memory = memory


def for_each_tile(
    run: Callable[[Tile], None],
    height: int,
    width: int,
    *,
    tile_size: int | None,
    halo: int,
    multiple_of: int = 1,
    device: torch.device | str = "cpu",
    on_tile: Progress | None = None,
) -> int:
    """Calls `run` with tiles whose cores cover an image exactly once; returns the largest core that fitted the memory.

    A tile for which `run` runs out of memory is given to it again in pieces, and so are all larger than those. `run` is
    to leave no trace of its failure.

    Args:
        run: does one tile, whose boxes may go past the image at the bottom and right: to the grid of `multiple_of`.
        height: of the image, any number of pixels.
        width: likewise.
        tile_size: largest side of a core, or None for one tile of the whole image.
        halo: context on each side.
        multiple_of: grid that the tiles lie on.
        device: whose memory is named where the failure itself names none.
        on_tile: called after each tile with the pixels done and the pixels in all.

    Raises:
        ConfigError: a tile size below 1 or a negative halo.
        OutOfMemory: even a tile of 64 pixels does not fit.
    """
    image = Box(0, round_up(height, multiple_of), 0, round_up(width, multiple_of))
    tile_size = image.size if tile_size is None else tile_size

    def split(core: Box, limit: int) -> list[Tile]:
        return cores_with_halo(core, image, limit, halo, multiple_of)

    tiles = plan_tiles(image.bottom, image.right, tile_size, halo, multiple_of)
    where = f"{width}x{height}", torch.device(device).type
    return run_tiles(run, tiles, split, smallest_side(tile_size, multiple_of), where, on_tile)


@torch.no_grad()
def run_tiles(
    run: Callable[[Tile], None],
    tiles: list[Tile],
    split: Callable[[Box, int], list[Tile]],
    smallest: int,
    where: tuple[str, str],
    on_tile: Progress | None,
) -> int:
    """Runs every tile, in smaller pieces from the first that runs out of memory on; returns the largest side left.

    `where` is for the message: the image's size and the memory it lies in.
    """
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
        exhausted = _try_tile(run, tile, where[1])
        if exhausted is not None:
            if tile.core.size <= smallest:
                raise OutOfMemory(
                    f"{where[0]} does not fit {exhausted} memory even at tile {smallest}; "
                    "free memory or use --precision bf16",
                    exhausted,
                )
            limit = max(smallest, tile.core.size // 2)
            pending.append(tile)
            continue
        done += tile.core.area
        if on_tile is not None:
            on_tile(done, total)
    return limit


def _try_tile(run: Callable[[Tile], None], tile: Tile, memory: str) -> str | None:
    """Returns None once the tile is done, or the name of the memory that did not suffice."""
    try:
        run(tile)
    except (RuntimeError, MemoryError, OutOfMemory) as error:
        if not _is_out_of_memory(error):
            raise
        if isinstance(error, OutOfMemory):
            memory = error.memory
        elif any(word in str(error) for word in ("CUDA", "CUDNN", "CUBLAS")):
            memory = "cuda"
    else:
        return None
    torch.cuda.empty_cache()  # only here: the handled error no longer holds the tensors of the failed call
    return memory


def _is_out_of_memory(error: BaseException) -> bool:
    kinds = torch.OutOfMemoryError | MemoryError | OutOfMemory
    return isinstance(error, kinds) or any(text in str(error) for text in OUT_OF_MEMORY)


def allocate(shape: tuple[int, ...], x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns an uninitialised tensor on the device of `x`.

    Raises:
        DeviceError: it does not fit the memory there; one line that says its size.
    """
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


def check_shape(y: Tensor, tile: Tile, scale: int) -> None:
    """Passes a network's output for a tile that has `scale` times the sides of its source."""
    height, width = tile.source.bottom - tile.source.top, tile.source.right - tile.source.left
    assert y.shape[-2:] == (height * scale, width * scale), (
        f"the network gave {tuple(y.shape)} for a {height}x{width} tile at scale {scale}"
    )


def fill(piece: Tensor, box: Box) -> Tensor:
    """Returns what an image has of a box continued to the whole box by its last row and column.

    Mirroring would need larger images.
    """
    bottom, right = box.bottom - box.top - piece.shape[-2], box.right - box.left - piece.shape[-1]
    return F.pad(piece, (0, right, 0, bottom), mode="replicate") if bottom or right else piece


def smallest_side(tile_size: int, multiple_of: int) -> int:
    """Returns the size at which halving stops."""
    return max(multiple_of, min(tile_size, SMALLEST_TILE))
