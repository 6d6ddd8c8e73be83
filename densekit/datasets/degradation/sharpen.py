"""Unsharp masking of the pictures that a network is to bring back."""

from __future__ import annotations

from kornia.filters import gaussian_blur2d
from torch import Tensor

SIZE, SIGMA = 51, 8.0  # pixels; OpenCV's sigma for that size, 0.3 ((size - 1) / 2 - 1) + 0.8
AMOUNT, THRESHOLD = 0.5, 10 / 255


def sharpen(x: Tensor) -> Tensor:
    """Returns (B, 3, H, W) in [0, 1] with its edges overdrawn, where they differ from their surroundings.

    Source: Wang et al. (ICCVW 2021), as for Real-ESRGAN+: the difference to a blurred copy is added by half where it
    exceeds 10 levels; that region is blurred too, so that it has no border of its own.
    """
    border = "reflect" if min(x.shape[-2:]) > SIZE // 2 else "replicate"
    residual = x - gaussian_blur2d(x, SIZE, (SIGMA, SIGMA), border)
    region = gaussian_blur2d((residual.abs() > THRESHOLD).to(x.dtype), SIZE, (SIGMA, SIGMA), border)
    return region * (x + AMOUNT * residual).clamp(0, 1) + (1 - region) * x
