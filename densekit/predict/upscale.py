"""Enlarging images with a super-resolution network."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from typing import TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from densekit.cards import Card
from densekit.image import Picture
from densekit.memory import available_memory
from densekit.predict.blend import SHARED, enlarge_blended
from densekit.predict.device import Runner, choose_place
from densekit.predict.inputs import (
    Array,
    Given,
    from_unit,
    in_channels,
    luma,
    peak_of,
    to_batch,
    to_kind_of,
    to_picture,
    to_unit,
)
from densekit.predict.parts import OnShare, Piece, for_each_part, mean_of_8
from densekit.predict.tiles import BUDGET, Tile, check_tile
from densekit.predict.trained import Trained
from densekit.resize import imresize
from densekit.tiling import Demand, Progress, Tiles, allocate, fill, tile_size_for

FAST_TILE = 192  # a light RDN takes 1.1 to 1.25 times as long at 96, hardly less at 256: AVX2, 32 MB of cache
ACCELERATOR_TILE = 1024  # enough to fill a GPU, and no tensor comes near 2 ** 31 elements
CONTEXTS_A_TILE = 8  # smallest core in contexts, which then cost at most (1 + 2 / 8) ** 2 = 1.56 times its own pixels
SMALLEST_PART, FIELDS_A_PART = 512, 24  # of a large image: its context costs at most (1 + 2 / 24) ** 2 = 1.17 times
BICUBIC_RADIUS = 2  # of what enlarges alpha and colour
BLACK, WHITE = 16 / 255, 235 / 255  # of the luma that networks for one channel are trained on

Place: TypeAlias = Callable[[int, int, Array], None]  # top, left, samples (h, w, S) of the result


class Upscaler(Trained):
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
        context: pixels that a tile needs around it, on each side, or, where no context would do, shares with the next.
        device: a `torch.device`.
        precision: "fp32", "bf16" or "fp16"; of an exported network also "int8".

    Raises:
        ConfigError: no such device or precision, or a network for another number of channels than 1 or 3.
        DeviceError: a device that is not there.
    """

    def __init__(self, net: nn.Module, card: Card, *, device: str = "auto", precision: str = "auto") -> None:
        self.device: torch.device
        self.precision: str
        self.device, self.precision = choose_place(net, device, precision, "sr")
        self.net: nn.Module = net
        self.card: Card = card
        self.scale: int = int(net.scale)  # type: ignore[arg-type]
        self._is_blended = net.receptive_field is None  # a foreign network, whose tiles are never exact
        self._field = SHARED if self._is_blended else int(net.receptive_field)  # type: ignore[arg-type]
        self._demand: Demand | None = getattr(net, "demand", None)
        self.context: int = self._demand.context if self._demand else self._field
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
            tile: largest side in input pixels of what goes through a block of the network at once, its context not
                counted; 16 or more, "off" for the whole image through the whole network, or "auto" by memory and speed.
                It does not change the result, except, with a warning, of foreign networks without a receptive field.
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
            enlarged = self.upscale_picture(picture, tile=tile, self_ensemble=self_ensemble, on_tile=on_tile)
            for line in enlarged.warnings:
                warnings.warn(line, stacklevel=2)
            return to_kind_of(image, enlarged)
        x, notes = to_batch(image), list[str]()
        result = allocate((*x.shape[:2], *(side * self.scale for side in x.shape[-2:])), x, torch.float32)

        def run(part: Piece, share: OnShare) -> None:
            y = self._enlarge(fill(part.source.of(x), part.source), net, self_ensemble, share)
            kept = part.core.within(part.source).of(y, self.scale)
            target = part.core.of(result, self.scale)
            target.copy_(kept[..., : target.shape[-2], : target.shape[-1]])

        side = self.choose_tile(x.shape[-2], x.shape[-1], tile, batch=len(x))
        net = self._bind(notes, side)
        self._for_each_part(run, x.shape[-2], x.shape[-1], side, on_tile, device=x.device, batch=len(x))
        for line in notes:
            warnings.warn(line, stacklevel=2)
        return result.clamp_(0, 1).reshape(*image.shape[:-2], *result.shape[-2:]).to(image.dtype)

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
        channels = picture.pixels.shape[2]
        shape = picture.height * self.scale, picture.width * self.scale, channels + (picture.alpha is not None)
        samples = np.empty(shape, picture.pixels.dtype)

        def place(top: int, left: int, part: Array) -> None:
            samples[top : top + part.shape[0], left : left + part.shape[1]] = part

        notes = self.upscale_into(place, picture, tile=tile, self_ensemble=self_ensemble, on_tile=on_tile)
        alpha = None if picture.alpha is None else samples[..., channels]
        return dataclasses.replace(picture, pixels=samples[..., :channels], alpha=alpha, warnings=notes)

    def upscale_into(
        self,
        place: Place,
        picture: Picture,
        *,
        tile: Tile = "auto",
        self_ensemble: bool = False,
        on_tile: Progress | None = None,
    ) -> tuple[str, ...]:
        """Gives `place` the enlarged picture part by part, as `upscale_picture` makes it; returns its warnings.

        Parts come in rows from the top left, each sample once, alpha as the last channel. Never is more than one part
        of the picture in float, nor its result. Arguments and errors as for `predict`.
        """
        pixels, alpha = picture.pixels, picture.alpha
        peak, opaque = peak_of(pixels), None if alpha is None else alpha.max()
        notes = list(picture.warnings)

        def run(part: Piece, share: OnShare) -> None:
            rows, columns = slice(*part.source[:2]), slice(*part.source[2:])
            x = fill(to_unit(pixels[rows, columns], peak)[0], part.source)
            y = self._enlarge(x, net, self_ensemble, share)
            top, left = part.core.top * self.scale, part.core.left * self.scale
            height, width = pixels.shape[0] * self.scale - top, pixels.shape[1] * self.scale - left
            core = part.core.within(part.source)
            samples = from_unit(core.of(y, self.scale)[..., :height, :width], pixels.dtype, peak)
            if alpha is not None:
                fine = imresize(alpha[rows, columns], self.scale).clip(0, opaque)
                fine = fine[core.top * self.scale :, core.left * self.scale :]
                samples = np.dstack((samples, fine[: samples.shape[0], : samples.shape[1]]))
            place(top, left, samples)

        side = self.choose_tile(picture.height, picture.width, tile)
        net = self._bind(notes, side, full=self._keeps_depth and pixels.dtype != np.uint8)
        self._for_each_part(run, picture.height, picture.width, side, on_tile)
        return tuple(notes)

    def choose_tile(self, height: int, width: int, tile: Tile = "auto", *, batch: int = 1) -> int | None:
        """Returns the side of the tiles for an image of this size in input pixels, or None for the whole at once.

        Raises:
            ConfigError: neither "auto", "off" nor a whole number of at least 16.
        """
        given = check_tile(tile)
        if given != "auto":
            return given if given is not None and given < max(height, width) else None
        largest = max(
            FAST_TILE * self._multiple_of if self.device.type == "cpu" else ACCELERATOR_TILE,
            CONTEXTS_A_TILE * self.context,
        )
        budget = BUDGET * available_memory(self.device) / batch
        bytes_per_pixel = self._runner.bytes_per_pixel
        is_small = self._is_blended or max(height, width) <= 1.5 * largest
        if is_small and height * width * bytes_per_pixel <= budget:
            return None
        maximum = None if self._is_blended else largest
        return tile_size_for(budget, bytes_per_pixel, self.context, self._multiple_of, maximum=maximum)

    def _choose_part(self, height: int, width: int, side: int | None, batch: int) -> int | None:
        """Returns the side of the parts that an image is cut into with the network's whole field around each.

        Inside a part the network goes block by block over tiles; one that cannot takes each tile as a part.
        """
        if self._is_blended:
            return None
        if side is None or self._demand is None:
            return side
        largest = max(SMALLEST_PART, FIELDS_A_PART * self._field)
        # Features in the network's precision, then pixels in and out, the latter once more while they are rounded.
        bytes_per_pixel = 4 * self._demand.channels + 4 * self._channels * (2 + 2 * self.scale**2)
        budget = BUDGET * available_memory(self.device) / batch
        if max(height, width) <= 1.5 * largest and height * width * bytes_per_pixel <= budget:
            return None
        return tile_size_for(budget, bytes_per_pixel, self._field, self._multiple_of, maximum=largest)

    def _bind(self, notes: list[str], side: int | None, *, full: bool = False) -> Callable[[Tensor, OnShare], Tensor]:
        """Returns the network as a function of a part of an image, gone through in tiles of `side`."""

        def run(x: Tensor, share: OnShare) -> Tensor:
            def apply(net: nn.Module, x: Tensor) -> Tensor:
                if side is None or self._demand is None:
                    return net(x)
                tiles = Tiles(max(1, side // self._multiple_of), passes=self._demand.passes, on_share=share)
                return net.stream(x, tiles)  # type: ignore[operator]

            bound = self._runner.bind(notes, full=full, apply=apply)
            if not self._is_blended:
                return bound(x)
            return enlarge_blended(
                bound,
                x,
                out_channels=int(self.net.out_channels),  # type: ignore[arg-type]
                scale=self.scale,
                multiple_of=self._multiple_of,
                tile_size=side,
                notes=notes,
                on_share=share,
            )

        return run

    def _for_each_part(
        self,
        run: Callable[[Piece, OnShare], None],
        height: int,
        width: int,
        side: int | None,
        on_tile: Progress | None,
        *,
        device: torch.device | str = "cpu",
        batch: int = 1,
    ) -> None:
        """Calls `run` with the parts of an image on `device`, the network in tiles of `side`."""
        for_each_part(
            run,
            height,
            width,
            tile_size=self._choose_part(height, width, side, batch),
            halo=max(self._field, BICUBIC_RADIUS),
            multiple_of=self._multiple_of,
            device=device,
            on_tile=on_tile,
        )

    def _enlarge(
        self, x: Tensor, net: Callable[[Tensor, OnShare], Tensor], self_ensemble: bool, share: OnShare
    ) -> Tensor:
        """Takes (B, C, H, W), C 1 or 3, whatever the network takes; gives (B, C, scale H, scale W), not clamped."""

        def enlarge(x: Tensor) -> Tensor:
            return mean_of_8(net, x, share) if self_ensemble else net(x, share)

        if x.shape[1] == self._channels:
            return enlarge(x)
        if self._channels == 3:
            return luma(enlarge(x.expand(-1, 3, -1, -1)))
        grey = luma(x)
        fine = (enlarge(grey * (WHITE - BLACK) + BLACK) - BLACK) / (WHITE - BLACK)
        colour = (x - grey).permute(0, 2, 3, 1).cpu().numpy()  # the eye sees detail in the light, not in the colour
        coarse = torch.from_numpy(np.stack([imresize(differences, self.scale) for differences in colour]))
        return fine + coarse.permute(0, 3, 1, 2).to(fine.device)
