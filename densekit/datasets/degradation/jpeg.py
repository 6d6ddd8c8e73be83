"""JPEG as files have it, on any device: 4:2:0, the standard's tables, rounded where a file's numbers are rounded."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-T T.81, annex K, tables K.1 and K.2.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
# The orthonormal DCT-II of 8 samples, a row for each frequency.
_DCT = tuple(
    tuple(math.cos((2 * i + 1) * u * math.pi / 16) / (2 if u else math.sqrt(8)) for i in range(8)) for u in range(8)
)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Returns what a JPEG file of `x` would be read as, in 256 levels.

    kornia's codec has soft roundings, which gradients pass and which keep a trace of what a file loses: over 400 crops
    of BSDS at quality 30, 60 and 90 its results are 0.8, 0.9 and 1.7 dB nearer to the original than a file of the same
    quality, these within 0.01 dB of it (`tools/bench_degradation.py`).

    Args:
        x: (B, 3, H, W) float32 in [0, 1], of any size.
        quality: 1 to 100, as for Pillow and libjpeg.

    Source: ITU-T T.81; scaling of the tables, means and interpolation of chroma as in libjpeg.
    """
    height, width = x.shape[-2:]
    levels = F.pad((x * 255).round(), (0, -width % 16, 0, -height % 16), mode="replicate")
    ycbcr = _mix(levels, _TO_YCBCR).round()
    luma = _code(ycbcr[:, :1] - 128, _table(_LUMA, quality, x.device)) + 128
    means = F.avg_pool2d(ycbcr[:, 1:], 2)
    columns = torch.arange(means.shape[-1], device=x.device)
    means = (means + 0.25 + columns % 2 / 4).floor()  # libjpeg's rounding, halves down and up in turn
    chroma = _code(means, _table(_CHROMA, quality, x.device))
    # a file's chroma has half the size of the picture, rounded up: nothing of the padding reaches what is seen
    chroma = chroma[..., : math.ceil(height / 2), : math.ceil(width / 2)]
    chroma = F.interpolate(chroma, scale_factor=2.0, mode="bilinear").round()
    whole = torch.cat([luma[..., :height, :width], chroma[..., :height, :width]], 1)
    return _mix(whole, _TO_RGB).round().clamp(0, 255) / 255


def luminance(x: Tensor) -> Tensor:
    """Returns Y (B, 1, H, W) of RGB (B, 3, H, W)."""
    return _mix(x, _TO_YCBCR[:1])


def _mix(x: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    return (_constant(matrix, x.device) @ x.flatten(2)).reshape(-1, len(matrix), *x.shape[2:])


def _code(x: Tensor, table: Tensor) -> Tensor:
    """Returns (B, C, H, W) of whole blocks, transformed, divided by the table, rounded and all of it back."""
    dct, width = _constant(_DCT, x.device), x.shape[-1]
    spectrum = (dct @ x.reshape(-1, 8, width)).reshape(-1, 8, width // 8, 8) @ dct.T
    steps = (spectrum / table[:, None]).abs().add(0.5).floor()  # halves, which sums of levels often are, away from 0
    spectrum = (steps * spectrum.sign() * table[:, None]) @ dct
    return (dct.T @ spectrum.reshape(-1, 8, width)).reshape(x.shape).round().clamp(-128, 127)


@functools.lru_cache(maxsize=64)
def _constant(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=512)
def _table(base: tuple[tuple[int, ...], ...], quality: int, device: torch.device) -> Tensor:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    rows = [[min(max((value * percent + 50) // 100, 1), 255) for value in row] for row in base]
    return torch.tensor(rows, dtype=torch.float32, device=device)
