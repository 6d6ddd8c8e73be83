"""Validation pictures with a low resolution that is the same in every run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from densekit.datasets.degradation.chain import degrade, seed_of
from densekit.datasets.degradation.presets import PRESETS
from densekit.datasets.packed import Record, Source, load_all
from densekit.datasets.pairs import to_chw
from densekit.datasets.pictures import Pixels, read_rgb


def load_degraded(sources: Sequence[Source], scale: int, name: str, *, cache: str | None = None) -> list[list[Record]]:
    """Returns [(lr, hr)] of each picture, or [] of one smaller than `scale`, as `packed.load_all` does.

    Args:
        sources: (picture,) each.
        scale: between the two.
        name: in PRESETS.
        cache: folder of packed pictures; None keeps them in memory.

    Raises:
        ImageError: a file cannot be read.
    """
    return load_all(f"sr {name} x{scale}", sources, partial(_read, scale=scale, name=name), cache)


def degraded_pair(picture: Pixels, scale: int, name: str, seed: int) -> tuple[Pixels, Pixels]:
    """Returns (lr, hr): `picture` cropped at the bottom and right to a multiple of `scale`, and degraded on the CPU."""
    height, width = (size - size % scale for size in picture.shape[:2])
    hr = picture[:height, :width]
    lr = degrade(to_chw(hr)[None].float() / 255, scale, [seed], PRESETS[name])[0]
    return (lr * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy(), hr


def _read(source: Source, scale: int, name: str) -> list[Record]:
    """The seed is that of the file's name alone: not of its folder, its place in the list or the run."""
    picture = read_rgb(source[0])
    return [degraded_pair(picture, scale, name, seed_of(source[0].name))] if min(picture.shape[:2]) >= scale else []
