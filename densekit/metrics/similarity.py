"""SSIM and MS-SSIM of super-resolved pictures, each by a named protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.metrics.sr_protocols import Planes, compared

PEAK = 255.0
WINDOW = 11  # in pixels, with sigma 1.5; Wang et al. 2004
SIGMA = 1.5
C1 = (0.01 * PEAK) ** 2
C2 = (0.03 * PEAK) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2; the finest scale first


def ssim(sr: NDArray[Any], hr: NDArray[Any], *, protocol: str = "rdn-y", scale: int) -> float:
    """Returns the structural similarity of `sr` and `hr`, at most 1: the mean over all 11 x 11 windows that fit.

    Windows are Gaussian with sigma 1.5, covariances those of the population; several channels are averaged.
    Arguments and errors are those of `psnr`, except that 11 x 11 pixels must remain inside the border.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
    """
    return ssim_of(*compared(sr, hr, protocol, scale, least=WINDOW))


def ssim_of(a: Planes, b: Planes) -> float:
    """Returns the structural similarity of (h, w, C) planes in 0..255, averaged over the channels."""
    return float(np.mean([_similarity(a[..., c], b[..., c])[0] for c in range(a.shape[2])]))


def ms_ssim(sr: NDArray[Any], hr: NDArray[Any], *, protocol: str = "rdn-y", scale: int) -> float:
    """Returns the multi-scale structural similarity of `sr` and `hr` in 0..1, over five scales.

    Between scales each 2 x 2 pixels become their mean; the last row or column of an odd number is repeated.
    A mean contrast below 0 at any scale counts as 0, since its power would not be a real number.
    Arguments and errors are those of `psnr`, except that 161 x 161 pixels must remain inside the border.

    Source: Wang, Simoncelli, Bovik, Multi-scale Structural Similarity for Image Quality Assessment, 2003.
    """
    halvings = len(SCALE_WEIGHTS) - 1
    a, b = compared(sr, hr, protocol, scale, least=(WINDOW - 1) * 2**halvings + 1)
    return float(np.mean([_ms_ssim_plane(a[..., c], b[..., c]) for c in range(a.shape[2])]))


def _ms_ssim_plane(a: Planes, b: Planes) -> float:
    result = 1.0
    for number, weight in enumerate(SCALE_WEIGHTS, start=1):
        whole, contrast = _similarity(a, b)
        result *= max(0.0, whole if number == len(SCALE_WEIGHTS) else contrast) ** weight
        a, b = _halve(a), _halve(b)
    return result


def _halve(plane: Planes) -> Planes:
    """Returns the means of 2 x 2 pixels: (H, W) -> (ceil(H / 2), ceil(W / 2))."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    return even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean(axis=(1, 3))


def _similarity(a: Planes, b: Planes) -> tuple[float, float]:
    """Returns the mean similarity of two planes, and its part of contrast and structure alone."""
    mean_a, mean_b = local_mean(a), local_mean(b)
    variances = local_mean(a * a + b * b) - mean_a**2 - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    contrast = (2 * covariance + C2) / (variances + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return float((luminance * contrast).mean()), float(contrast.mean())


def local_mean(plane: Planes) -> Planes:
    """Returns the Gaussian mean around each pixel whose whole window lies inside: (H, W) -> (H - 10, W - 10)."""
    import cv2

    distance = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(distance**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    edge = WINDOW // 2
    filtered: Planes = cv2.sepFilter2D(plane, cv2.CV_64F, kernel, kernel)
    return filtered[edge:-edge, edge:-edge]
