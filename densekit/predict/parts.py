"""A large image part by part, and how far along it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from densekit.tiling import Progress, for_each_tile
from densekit.tiling import Tile as Piece

__all__ = ["OnShare", "Piece", "for_each_part", "mean_of_8"]

OnShare: TypeAlias = Callable[[float], None]  # of the work on a part, in 0..1


def for_each_part(
    run: Callable[[Piece, OnShare], None],
    height: int,
    width: int,
    *,
    tile_size: int | None,
    halo: int,
    multiple_of: int,
    device: torch.device | str,
    on_tile: Progress | None,
) -> None:
    """Calls `run` with parts that cover an image, and with what it is to call with the share of a part that is done.

    Arguments and errors as for `for_each_tile`; `on_tile` is called with ever more pixels of the image and its area.
    """
    done = shown = 0

    def run_part(part: Piece) -> None:
        nonlocal done
        area = (min(part.core.bottom, height) - part.core.top) * (min(part.core.right, width) - part.core.left)

        def report(share: float) -> None:
            nonlocal shown
            pixels = done + int(area * min(share, 1.0))
            if on_tile is not None and pixels > shown:  # a part that is run once more starts anew, unseen
                shown = pixels
                on_tile(pixels, height * width)

        run(part, report)
        report(1.0)
        done += area

    for_each_tile(run_part, height, width, tile_size=tile_size, halo=halo, multiple_of=multiple_of, device=device)


def mean_of_8(run: Callable[[Tensor, OnShare], Tensor], x: Tensor, share: OnShare) -> Tensor:
    """Returns the mean of `run` over the flips and quarter turns of `x`, each turned back."""
    total = torch.zeros(())
    for index in range(8):
        flip, turns = divmod(index, 4)

        def report(part: float, index: int = index) -> None:
            share((index + part) / 8)

        turned = torch.rot90(x.flip(-1) if flip else x, turns, (-2, -1))
        y = torch.rot90(run(turned, report), -turns, (-2, -1))
        total = total.to(y.device) + (y.flip(-1) if flip else y)
    return total / 8
