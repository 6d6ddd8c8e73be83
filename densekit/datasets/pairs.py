"""Super-resolution pairs: high-resolution pictures, the low-resolution ones made from them, and crops of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from densekit.datasets.draws import draw_rng
from densekit.datasets.pictures import Pixels, list_pictures, read_rgb
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


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Random crops of pairs, decoded once and kept in memory as uint8.

    Args:
        folders: of high-resolution pictures; one named twice counts twice.
        scale: between low and high resolution.
        crop_size: side of a crop in low-resolution pixels.
        seed: of the run, which with the draw decides where a crop lies and how it is turned.
        shrink: factors at which each picture enters, such as (1, 0.7): reduced copies add detail per pixel and hide
            the blocks of JPEG files.

    Pictures and copies that are smaller than a crop are left out; `left_out` lists those of which nothing is left,
    `origins` the file of each pair.

    Items: for (draw, index), lr (3, crop, crop) and hr (3, scale crop, scale crop), uint8, flipped and turned alike.

    Raises:
        DataError: no pictures, or none as large as a crop.
    """

    def __init__(
        self, folders: Sequence[str], scale: int, crop_size: int, seed: int, *, shrink: Sequence[float] = (1.0,)
    ) -> None:
        self.scale = scale
        self.crop_size = crop_size
        self.seed = seed
        self.paths = list_pictures(folders)
        self.pairs: list[tuple[Pixels, Pixels]] = []
        self.origins: list[Path] = []
        self.left_out: list[Path] = []
        need = crop_size * scale
        for path in self.paths:
            picture = read_rgb(path)
            copies = [picture if factor == 1 else imresize(picture, factor, mode="benchmark") for factor in shrink]
            fitting = [make_pair(hr, scale) for hr in copies if min(hr.shape[:2]) >= need]
            self.pairs += fitting
            self.origins += [path] * len(fitting)
            if not fitting:
                self.left_out.append(path)
        if not self.pairs:
            raise DataError(
                f"{printable(folders[0])}: no picture is {need}x{need}, which a crop of {crop_size} at scale {scale} "
                "needs; lower train.crop_size or give larger pictures"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        draw, index = item
        rng = draw_rng(self.seed, draw)
        lr, hr = self.pairs[index]
        size, scale = self.crop_size, self.scale
        top = int(rng.integers(lr.shape[0] - size + 1))
        left = int(rng.integers(lr.shape[1] - size + 1))
        turn = int(rng.integers(8))
        lr = turned(lr[top : top + size, left : left + size], turn)
        hr = turned(hr[top * scale : (top + size) * scale, left * scale : (left + size) * scale], turn)
        return to_chw(lr), to_chw(hr)


def turned(pixels: Pixels, turn: int) -> Pixels:
    """Returns one of the eight orientations of a square: bit 2 mirrors, bits 0 and 1 count quarter turns."""
    if turn & 4:
        pixels = pixels[:, ::-1]
    return np.rot90(pixels, turn & 3)


def to_chw(pixels: Pixels) -> Tensor:
    """Returns (H, W, C) uint8 pixels as a (C, H, W) tensor of their own memory."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
