"""Enlarging images with a super-resolution network."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from densekit.cards import Card
from densekit.image import Picture
from densekit.memory import available_memory
from densekit.predict.device import Runner, choose_device, choose_precision
from densekit.predict.inputs import (
    Array,
    Given,
    from_unit,
    in_channels,
    luma,
    to_batch,
    to_kind_of,
    to_picture,
    to_unit,
)
from densekit.predict.tiles import BUDGET, Tile, check_tile
from densekit.resize import imresize
from densekit.tiling import Progress, run_exact, tile_size_for

FAST_TILE = 256  # above, an RDN leaves the caches: whole images take 1.4 to 1.7 times as long for each pixel
ACCELERATOR_TILE = 1024  # enough to fill a GPU, and no tensor comes near 2 ** 31 elements
HALOS_A_TILE = 8  # smallest core in halos; its context then costs at most (1 + 2 / 8) ** 2 = 1.56 times its own pixels
BLACK, WHITE = 16 / 255, 235 / 255  # of the luma that networks for one channel are trained on


class Upscaler:
    """A super-resolution network that enlarges images of any size, depth and kind.

    It holds nothing of an image: calls from several threads do not disturb each other.

    Args:
        net: with its weights; it is moved to the device and set to evaluation mode.
        card: what its checkpoint says about it.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16"; "auto" keeps fp32 for pixels of more than 8 bits.

    Attributes:
        net, card: as given.
        scale: output pixels per input pixel, on each side.
        device: a `torch.device`.
        precision: "fp32", "bf16" or "fp16".

    Raises:
        ConfigError: no such device or precision, or a network for another number of channels than 1 or 3.
        DeviceError: a device that is not there.
    """

    def __init__(self, net: nn.Module, card: Card, *, device: str = "auto", precision: str = "auto") -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device, "sr")
        self.net, self.card = net, card
        self.scale = int(net.scale)  # type: ignore[arg-type]
        self._halo = int(net.receptive_field)  # type: ignore[arg-type]
        self._multiple_of = int(net.multiple_of)  # type: ignore[arg-type]
        self._channels = in_channels(net, card)
        self._keeps_depth = precision == "auto"
        self._runner = Runner(net, self.device, self.precision, self._channels)

    @overload
    def predict(
        self, image: Image.Image, *, tile: Tile = ..., self_ensemble: bool = ..., on_tile: Progress | None = ...
    ) -> Image.Image: ...

    @overload
    def predict(
        self, image: Tensor, *, tile: Tile = ..., self_ensemble: bool = ..., on_tile: Progress | None = ...
    ) -> Tensor: ...

    @overload
    def predict(
        self,
        image: str | os.PathLike[str] | Array,
        *,
        tile: Tile = ...,
        self_ensemble: bool = ...,
        on_tile: Progress | None = ...,
    ) -> Array: ...

    def predict(
        self, image: Given, *, tile: Tile = "auto", self_ensemble: bool = False, on_tile: Progress | None = None
    ) -> Image.Image | Array | Tensor:
        """Returns the image enlarged by `scale`, as the kind that was given.

        A path gives an array (H, W, C) with alpha as its last channel; an array keeps its dtype and number of
        dimensions, a PIL image its ICC profile and EXIF in `info`, a tensor ((C, H, W) or (B, C, H, W), clamped to
        0..1) its dtype and device. Grey stays grey, 16 bits stay 16. Float arrays hold 0..1; where their largest value
        is above 1 it takes the place of 1. They are not clamped. What a reader should know comes as a warning.

        Args:
            image: a path, a PIL image, an array of uint8, uint16 or float32, or a float tensor in 0..1.
            tile: largest side in input pixels of what goes through the network at once, its context not counted; 16 or
                more, "off" for the whole image, or "auto" by memory and speed. It does not change the result.
            self_ensemble: the mean over the 8 flips and rotations of the image: 8 times the work for about 0.1 dB.
            on_tile: called after each tile with the pixels done and the pixels in all.

        Raises:
            ConfigError: another kind of image, or a wrong tile.
            ImageError: an image that cannot be read, or with another shape, dtype or range.
            DeviceError: not enough memory even for the smallest tile.
            CheckpointError: the weights give values that are not finite.
        """
        if not isinstance(image, Tensor):
            picture = to_picture(image)
            result = self.upscale_picture(picture, tile=tile, self_ensemble=self_ensemble, on_tile=on_tile)
            for line in result.warnings:
                warnings.warn(line, stacklevel=2)
            return to_kind_of(image, result)
        notes: list[str] = []
        y = self._enlarge(to_batch(image), tile, self_ensemble, on_tile, self._runner.bind(notes))
        for line in notes:
            warnings.warn(line, stacklevel=2)
        return y.clamp_(0, 1).reshape(*image.shape[:-2], *y.shape[-2:]).to(image.dtype)

    def upscale_picture(
        self,
        picture: Picture,
        *,
        tile: Tile = "auto",
        self_ensemble: bool = False,
        on_tile: Progress | None = None,
    ) -> Picture:
        """Returns the picture enlarged by `scale`, with its depth, grey, ICC profile, EXIF and format.

        Alpha is enlarged by itself, bicubic. Arguments and errors as for `predict`; warnings are in the result.
        """
        x, peak = to_unit(picture.pixels)
        notes = list(picture.warnings)
        full = self._keeps_depth and picture.pixels.dtype != np.uint8
        y = self._enlarge(x, tile, self_ensemble, on_tile, self._runner.bind(notes, full=full))
        alpha = picture.alpha
        if alpha is not None:
            alpha = imresize(alpha, self.scale).clip(0, alpha.max())
        pixels = from_unit(y, picture.pixels.dtype, peak)
        return dataclasses.replace(picture, pixels=pixels, alpha=alpha, warnings=tuple(notes))

    def choose_tile(self, height: int, width: int, tile: Tile = "auto", *, batch: int = 1) -> int | None:
        """Returns the side of the tiles for an image of this size in input pixels, or None for the whole at once.

        Raises:
            ConfigError: neither "auto", "off" nor a whole number of at least 16.
        """
        given = check_tile(tile)
        if given != "auto":
            return given if given is not None and given < max(height, width) else None
        largest = max(FAST_TILE if self.device.type == "cpu" else ACCELERATOR_TILE, HALOS_A_TILE * self._halo)
        budget = BUDGET * available_memory(self.device) / batch
        bytes_per_pixel = self._runner.bytes_per_pixel
        if max(height, width) <= 1.5 * largest and height * width * bytes_per_pixel <= budget:
            return None
        return tile_size_for(budget, bytes_per_pixel, self._halo, self._multiple_of, maximum=largest)

    def _enlarge(
        self,
        x: Tensor,
        tile: Tile,
        self_ensemble: bool,
        on_tile: Progress | None,
        net: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Takes (B, C, H, W), C 1 or 3, whatever the network takes; gives (B, C, scale H, scale W), not clamped."""
        tile_size = self.choose_tile(x.shape[-2], x.shape[-1], tile, batch=len(x))

        def run(x: Tensor, on_tile: Progress | None) -> Tensor:
            return run_exact(
                net,
                x,
                scale=self.scale,
                halo=self._halo,
                tile_size=tile_size,
                multiple_of=self._multiple_of,
                on_tile=on_tile,
            )

        def enlarge(x: Tensor) -> Tensor:
            return mean_of_8(run, x, on_tile) if self_ensemble else run(x, on_tile)

        if x.shape[1] == self._channels:
            return enlarge(x)
        if self._channels == 3:
            return luma(enlarge(x.expand(-1, 3, -1, -1)))
        grey = luma(x)
        fine = (enlarge(grey * (WHITE - BLACK) + BLACK) - BLACK) / (WHITE - BLACK)
        colour = (x - grey).permute(0, 2, 3, 1).cpu().numpy()  # the eye sees detail in the light, not in the colour
        coarse = torch.from_numpy(np.stack([imresize(differences, self.scale) for differences in colour]))
        return fine + coarse.permute(0, 3, 1, 2).to(fine.device)


def mean_of_8(run: Callable[[Tensor, Progress | None], Tensor], x: Tensor, on_tile: Progress | None = None) -> Tensor:
    """Returns the mean of `run` over the flips and quarter turns of `x`, each turned back."""
    total = torch.zeros(())
    for index in range(8):
        flip, turns = divmod(index, 4)

        def report(done: int, area: int, index: int = index) -> None:
            assert on_tile is not None
            on_tile(index * area + done, 8 * area)

        turned = torch.rot90(x.flip(-1) if flip else x, turns, (-2, -1))
        y = torch.rot90(run(turned, on_tile and report), -turns, (-2, -1))
        total = total.to(y.device) + (y.flip(-1) if flip else y)
    return total / 8
