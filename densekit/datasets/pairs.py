"""Super-resolution pairs: high-resolution pictures, low-resolution ones read or made from them, and crops of both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from densekit.datasets.draws import draw_rng
from densekit.datasets.packed import Record, Source, load_all
from densekit.datasets.partners import size_fault
from densekit.datasets.pictures import Pixels, read_rgb
from densekit.errors import DataError
from densekit.files import printable
from densekit.resize import imresize


def make_pair(hr: Pixels, scale: int) -> tuple[Pixels, Pixels]:
    """Returns (lr, hr): `hr` cropped at the bottom and right to a multiple of `scale`, `lr` its bicubic reduction.

    Args:
        hr: (H, W, 3) uint8.
        scale: the factor between them.

    Source: the benchmarks' rule, `densekit.resize` mode "benchmark".
    """
    height, width = (size - size % scale for size in hr.shape[:2])
    hr = hr[:height, :width]
    return imresize(hr, 1 / scale, mode="benchmark"), hr


def read_records(source: Source, scale: int, shrink: Sequence[float], hr_only: bool) -> list[Record]:
    """Returns (lr, hr) of each copy of a picture, or (hr,).

    Args:
        source: as from `pair_pictures`.
        scale: between the two.
        shrink: factors of the copies; a picture with its own low resolution enters as it is.
        hr_only: leaves low resolution away, and the picture uncut.

    Raises:
        ImageError: a file cannot be read.
        DataError: the sizes do not fit.
    """
    hr = read_rgb(source[0])
    if len(source) > 1:
        lr = read_rgb(source[1])
        if fault := size_fault(source, (hr.shape, lr.shape), scale):
            raise DataError(fault)
        return [(lr, hr[: lr.shape[0] * scale, : lr.shape[1] * scale])]
    copies = [hr if factor == 1 else imresize(hr, factor, mode="benchmark") for factor in shrink]
    copies = [copy for copy in copies if min(copy.shape[:2]) >= scale]
    return [(copy,) for copy in copies] if hr_only else [make_pair(copy, scale) for copy in copies]


def load_pairs(
    sources: Sequence[Source],
    scale: int,
    *,
    shrink: Sequence[float] = (1.0,),
    cache: str | None = None,
    hr_only: bool = False,
) -> list[list[Record]]:
    """Returns the records of each source, as `read_records`; with a folder `cache` as `packed.load_all` keeps them."""
    name = f"sr {'hr' if hr_only else 'pairs'} x{scale} {[float(factor) for factor in shrink]}"
    return load_all(name, sources, partial(read_records, scale=scale, shrink=shrink, hr_only=hr_only), cache)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Random crops of pairs, decoded once and kept as uint8, in memory or in a cache.

    Args:
        sources: as from `pair_pictures`; one named twice counts twice.
        scale: between low and high resolution.
        crop_size: side of a crop in low-resolution pixels.
        seed: of the run, which with the draw decides where a crop lies and how it is turned.
        shrink: factors at which each picture enters, such as (1, 0.7): reduced copies add detail per pixel and hide
            the blocks of JPEG files.
        cache: folder of packed pictures, see `densekit.datasets.packed`; None keeps them in memory.
        hr_only: for low resolution that is made from the crops later; items are then (hr, hr).

    Pictures and copies that are smaller than a crop are left out; `left_out` lists those of which nothing is left,
    `origins` the file of each pair, `paths` all pictures.

    Items: for (draw, index), lr (3, crop, crop) and hr (3, scale crop, scale crop), uint8, flipped and turned alike.

    Raises:
        ImageError, DataError: a file cannot be read, sizes do not fit, or no picture is as large as a crop.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        scale: int,
        crop_size: int,
        seed: int,
        *,
        shrink: Sequence[float] = (1.0,),
        cache: str | None = None,
        hr_only: bool = False,
    ) -> None:
        self.scale = scale
        self.crop_size = crop_size
        self.seed = seed
        self.hr_only = hr_only
        self.paths: list[Path] = [source[0] for source in sources]
        self.pairs: list[Record] = []
        self.origins: list[Path] = []
        self.left_out: list[Path] = []
        need = crop_size * scale
        loaded = load_pairs(sources, scale, shrink=shrink, cache=cache, hr_only=hr_only)
        for path, records in zip(self.paths, loaded, strict=True):
            fitting = [record for record in records if min(record[-1].shape[:2]) >= need]
            self.pairs += fitting
            self.origins += [path] * len(fitting)
            if not fitting:
                self.left_out.append(path)
        if not self.pairs:
            raise DataError(
                f"{printable(self.paths[0].parent)}: no picture is {need}x{need}, which a crop of {crop_size} at scale "
                f"{scale} needs; lower train.crop_size or give larger pictures"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        draw, index = item
        return self.crop(self.pairs[index], draw)

    def crop(self, record: Record, draw: int) -> tuple[Tensor, Tensor]:
        """Returns the item that a draw cuts from (lr, hr), or from (hr,) where there is no other."""
        rng = draw_rng(self.seed, draw)
        hr, size, scale = record[-1], self.crop_size, self.scale
        top = int(rng.integers(hr.shape[0] // scale - size + 1))
        left = int(rng.integers(hr.shape[1] // scale - size + 1))
        turn = int(rng.integers(8))
        large = turned(hr[top * scale : (top + size) * scale, left * scale : (left + size) * scale], turn)
        if self.hr_only:
            crop = to_chw(large)
            return crop, crop
        return to_chw(turned(record[0][top : top + size, left : left + size], turn)), to_chw(large)


def turned(pixels: Pixels, turn: int) -> Pixels:
    """Returns one of the eight orientations of a square: bit 2 mirrors, bits 0 and 1 count quarter turns."""
    if turn & 4:
        pixels = pixels[:, ::-1]
    return np.rot90(pixels, turn & 3)


def to_chw(pixels: Pixels) -> Tensor:
    """Returns (H, W, C) uint8 pixels as a (C, H, W) tensor of their own memory."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
