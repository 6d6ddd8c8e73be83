"""The logits of a segmentation network on a picture of any size, as prediction makes them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from densekit.predict import Segmenter
from densekit.predict.inputs import luma
from densekit.predict.segment import OVERLAPS, WINDOW
from densekit.predict.tiles import Tile
from densekit.tiling import Progress, run_blended


def logits_of(model: Segmenter, x: Tensor, *, tile: Tile, on_tile: Progress | None, notes: list[str]) -> Tensor:
    """Returns the logits (B, num_outputs, H, W), float32, of pictures (B, C, H, W) in 0..1, C 1 or 3.

    Args:
        model: the network.
        x: whatever the network takes, grey becomes RGB and RGB grey.
        tile: as for `Segmenter.predict`.
        on_tile: likewise.
        notes: gets a line where the precision had to be raised.
    """
    height, width = x.shape[-2:]
    side = model.choose_tile(height, width, tile, batch=len(x))
    if x.shape[1] != model._channels:
        x = luma(x) if model._channels == 1 else x.expand(-1, 3, -1, -1)
    missing = (0, max(0, model._min_size - width), 0, max(0, model._min_size - height))
    return run_blended(
        model._runner.bind(notes),
        F.pad(x, missing, mode="replicate"),
        num_outputs=model._num_outputs,
        tile_size=side,
        overlap=(side or WINDOW) // OVERLAPS,
        multiple_of=model._multiple_of if side is None else model._grid,
        on_tile=on_tile,
    )[..., :height, :width]


def ids_of(logits: Tensor) -> Tensor:
    """Returns the class of every pixel, (B, H, W) int64; of one logit, 1 where it is above 0."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
