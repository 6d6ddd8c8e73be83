"""Finding the class of every pixel with a segmentation network."""

from __future__ import annotations

import itertools
import os
import warnings
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from densekit.cards import Card
from densekit.errors import ConfigError
from densekit.image import Picture
from densekit.memory import available_memory
from densekit.predict.device import Runner, choose_place
from densekit.predict.inputs import Array, Given, argument_of, in_channels, luma, to_batch, to_picture, to_unit
from densekit.predict.overlay import PALETTE
from densekit.predict.tiles import BUDGET, Tile, check_tile
from densekit.predict.trained import Trained
from densekit.tiling import Progress, run_blended, tile_size_for

WINDOW = 512  # pixels, where the image does not fit as a whole
OVERLAPS = 4  # windows share a quarter of their side


class Segmenter(Trained):
    """A segmentation network that gives every pixel of an image of any size its class.

    It holds nothing of an image: calls from several threads do not disturb each other. A network with one logit is
    binary: class 1 is where the logit is above 0.

    Args:
        net: with its weights; it is moved to the device and set to evaluation mode.
        card: what its checkpoint says about it.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16".

    Attributes:
        net, card: as given.
        classes: names, in the order of their ids.
        palette: RGB of each class, 0..255.
        device: a `torch.device`.
        precision: "fp32", "bf16" or "fp16"; of an exported network also "int8".

    Raises:
        ConfigError: no such device or precision, or a network for more than 256 classes or for another number of
            channels than 1 or 3.
        DeviceError: a device that is not there.
    """

    def __init__(self, net: nn.Module, card: Card, *, device: str = "auto", precision: str = "auto") -> None:
        self.device: torch.device
        self.precision: str
        self.device, self.precision = choose_place(net, device, precision, "seg")
        self.net: nn.Module = net
        self.card: Card = card
        self._multiple_of = int(net.multiple_of)  # type: ignore[arg-type]
        self._min_size = int(getattr(net, "min_size", 1))
        self._grid = max(self._multiple_of, self._min_size)  # of windows: both are powers of two
        self._channels = in_channels(net, card)
        self._num_outputs = int(argument_of(net, card, "num_classes"))
        count = max(2, self._num_outputs)
        if count > 256:
            raise ConfigError(f"{card.model} tells {count} classes apart; expected at most 256, the ids of a byte")
        self.classes: tuple[str, ...] = (
            card.classes if len(card.classes) == count else tuple(f"class {i}" for i in range(count))
        )
        colours = itertools.islice(itertools.cycle(PALETTE), count)
        self.palette: tuple[tuple[int, int, int], ...] = card.palette if len(card.palette) == count else tuple(colours)
        self._runner = Runner(net, self.device, self.precision, self._channels)

    @overload
    def predict(self, image: Image.Image, *, tile: Tile = ..., on_tile: Progress | None = ...) -> Image.Image: ...

    @overload
    def predict(self, image: Tensor, *, tile: Tile = ..., on_tile: Progress | None = ...) -> Tensor: ...

    @overload
    def predict(
        self, image: str | os.PathLike[str] | Array, *, tile: Tile = ..., on_tile: Progress | None = ...
    ) -> NDArray[np.uint8]: ...

    def predict(
        self, image: Given, *, tile: Tile = "auto", on_tile: Progress | None = None
    ) -> Image.Image | NDArray[np.uint8] | Tensor:
        """Returns the class of every pixel.

        A path or an array gives ids (H, W) uint8; a PIL image one of mode P with the network's palette; a tensor (C, H,
        W) or (B, C, H, W) in 0..1 gives int64 (H, W) or (B, H, W) on its device. Alpha is ignored. What a reader should
        know comes as a warning.

        Args:
            image: a path, a PIL image, an array of uint8, uint16 or float32, or a float tensor in 0..1.
            tile: side of the windows in pixels, 16 or more, whose logits fade into each other over a quarter of it;
                "off" for the whole image; "auto" for the whole image where half of the free memory holds it, else
                windows of at most 512. Such networks see further than any window, so that windows change the result.
            on_tile: called after each window with the pixels done and the pixels in all.

        Raises:
            ConfigError: another kind of image, a wrong tile, or a model without statistics of its own.
            ImageError: an image that cannot be read, or with another shape, dtype or range.
            DeviceError: not enough memory even for the smallest window.
            CheckpointError: the weights give values that are not finite.
        """
        if isinstance(image, Tensor):
            self.check_statistics()
            ids = self._ids(to_batch(image), tile, on_tile)
            return ids.reshape(*image.shape[:-3], *ids.shape[-2:])
        result = self.segment_picture(to_picture(image), tile=tile, on_tile=on_tile)
        if not isinstance(image, Image.Image):
            return result
        mask = Image.fromarray(result)
        mask.putpalette(np.array(self.palette, np.uint8).tobytes())
        return mask

    def segment_picture(
        self, picture: Picture, *, tile: Tile = "auto", on_tile: Progress | None = None
    ) -> NDArray[np.uint8]:
        """Returns the class of every pixel of a picture, (H, W). Arguments, warnings and errors as for `predict`."""
        self.check_statistics()
        x, _ = to_unit(picture.pixels)
        return self._ids(x, tile, on_tile)[0].byte().numpy()

    def check_statistics(self) -> None:
        """Passes a model whose result is its picture's alone.

        Raises:
            ConfigError: its batch norms have no statistics of their own.
        """
        if self.card.bn_mode == "batch":
            raise ConfigError(
                "the model was trained on the statistics of its batches, which a picture alone does not have (bn_mode "
                "batch); make running ones with densekit bn recalibrate"
            )

    def choose_tile(self, height: int, width: int, tile: Tile = "auto", *, batch: int = 1) -> int | None:
        """Returns the side of the windows for an image of this size, or None for the whole image at once.

        Raises:
            ConfigError: neither "auto", "off" nor a whole number of at least 16.
        """
        given = check_tile(tile)
        if given != "auto":
            return given if given is not None and given < max(height, width) else None
        budget = BUDGET * available_memory(self.device) / batch
        bytes_per_pixel = self._runner.bytes_per_pixel
        if height * width * bytes_per_pixel <= budget:
            return None
        return tile_size_for(budget, bytes_per_pixel, 0, self._grid, maximum=WINDOW)

    def logits(
        self, x: Tensor, *, tile: Tile = "auto", on_tile: Progress | None = None, notes: list[str] | None = None
    ) -> Tensor:
        """Returns the logits (B, num_outputs, H, W), float32, of which `predict` takes the largest.

        Args:
            x: (B, C, H, W) in 0..1, C 1 or 3, whatever the network takes.
            tile: as for `predict`.
            on_tile: likewise.
            notes: gets a line where the precision had to be raised.
        """
        height, width = x.shape[-2:]
        tile_size = self.choose_tile(height, width, tile, batch=len(x))
        if x.shape[1] != self._channels:
            x = luma(x) if self._channels == 1 else x.expand(-1, 3, -1, -1)
        missing = (0, max(0, self._min_size - width), 0, max(0, self._min_size - height))
        return run_blended(
            self._runner.bind([] if notes is None else notes),
            F.pad(x, missing, mode="replicate"),
            num_outputs=self._num_outputs,
            tile_size=tile_size,
            overlap=(tile_size or WINDOW) // OVERLAPS,
            multiple_of=self._multiple_of if tile_size is None else self._grid,
            on_tile=on_tile,
        )[..., :height, :width]

    def _ids(self, x: Tensor, tile: Tile, on_tile: Progress | None) -> Tensor:
        notes: list[str] = []
        ids = classes_of(self.logits(x, tile=tile, on_tile=on_tile, notes=notes))
        for line in notes:
            warnings.warn(line, stacklevel=4)
        return ids


def classes_of(logits: Tensor) -> Tensor:
    """Returns the class of every pixel, int64 (B, H, W); of one logit, 1 where it is above 0."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
