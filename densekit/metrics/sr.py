"""PSNR and SSIM of super-resolved pictures, each by a named protocol.

Scores of different protocols differ by whole decibels, so a score is always stored with its protocol's name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.color import rgb_to_y
from densekit.errors import ConfigError, DataError, suggest

PEAK = 255.0
WINDOW = 11  # of SSIM, in pixels, with sigma 1.5; Wang et al. 2004
SIGMA = 1.5
C1 = (0.01 * PEAK) ** 2
C2 = (0.03 * PEAK) ** 2


@dataclass(frozen=True)
class Protocol:
    """How a pair of pictures becomes a score.

    Attributes:
        name: As written beside every score.
        luma: Whether the BT.601 luma is compared; else all channels are, as they are stored.
        extra_border: Pixels cropped from each side in addition to `scale` pixels.
        description: One line for tables and help.
    """

    name: str
    luma: bool
    extra_border: int
    description: str

    def border(self, scale: int) -> int:
        """Returns the number of pixels cropped from each side."""
        return scale + self.extra_border


PROTOCOLS: dict[str, Protocol] = {
    "rdn-y": Protocol("rdn-y", True, 0, "BT.601 luma, not rounded; `scale` pixels cropped from each side"),
    "rgb": Protocol("rgb", False, 0, "all channels as stored; `scale` pixels cropped from each side"),
}


def psnr(sr: NDArray[Any], hr: NDArray[Any], *, protocol: str = "rdn-y", scale: int) -> float:
    """Returns the peak signal-to-noise ratio of `sr` against `hr` in dB; infinity where they are equal.

    A test set's figure is the mean of the figures of its pictures.

    Args:
        sr: (H, W, 3), (H, W, 1) or (H, W) uint8: the network's result, clipped and rounded.
        hr: The original, same shape: cropped at the bottom and right to a multiple of `scale`.
        protocol: A name in `PROTOCOLS`.
        scale: The upscaling factor; it decides how many pixels of border are left out.

    Raises:
        ConfigError: an unknown protocol, or a scale below 1.
        DataError: pictures of unequal shape, not uint8, or too small for the border.
    """
    a, b = _planes(sr, hr, protocol, scale, least=1)
    mse = float(np.square(a - b).mean())
    return 10 * math.log10(PEAK**2 / mse) if mse else math.inf


def ssim(sr: NDArray[Any], hr: NDArray[Any], *, protocol: str = "rdn-y", scale: int) -> float:
    """Returns the structural similarity of `sr` and `hr`, at most 1: the mean over all 11 x 11 windows that fit.

    Windows are Gaussian with sigma 1.5, covariances those of the population; several channels are averaged.
    Arguments and errors are those of `psnr`, except that 11 x 11 pixels must remain inside the border.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
    """
    a, b = _planes(sr, hr, protocol, scale, least=WINDOW)
    return float(np.mean([_ssim_plane(a[..., c], b[..., c]) for c in range(a.shape[2])]))


def _planes(
    sr: NDArray[Any], hr: NDArray[Any], protocol: str, scale: int, least: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns what the protocol compares of each: (h, w, C) float64 in 0..255, borders cropped."""
    rule = PROTOCOLS.get(protocol)
    if rule is None:
        raise ConfigError(
            f"protocol {protocol!r} is unknown; expected one of {', '.join(PROTOCOLS)}{suggest(protocol, PROTOCOLS)}"
        )
    if scale < 1:
        raise ConfigError(f"scale {scale} is not possible; expected an integer of at least 1")
    if sr.shape != hr.shape:
        raise DataError(
            f"found a result of shape {sr.shape} and an original of shape {hr.shape}; expected equal shapes"
        )
    if sr.dtype != np.uint8 or hr.dtype != np.uint8:
        raise DataError(
            f"found a result of {sr.dtype} and an original of {hr.dtype}; expected uint8, clipped and rounded"
        )
    if sr.ndim not in (2, 3):
        raise DataError(f"found pictures of shape {sr.shape}; expected (H, W, C) or (H, W)")
    border = rule.border(scale)
    height, width = (n - 2 * border for n in sr.shape[:2])
    if min(height, width) < least:
        raise DataError(
            f"found pictures of {sr.shape[0]} x {sr.shape[1]} pixels; expected at least {least + 2 * border} each way, "
            f"since protocol {protocol} crops {border} from each side"
        )
    inside = (slice(border, border + height), slice(border, border + width))
    return _values(sr[inside], rule), _values(hr[inside], rule)


def _values(picture: NDArray[Any], rule: Protocol) -> NDArray[np.float64]:
    values = rgb_to_y(picture) if rule.luma else picture.astype(np.float64)
    return np.atleast_3d(values)


def _ssim_plane(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    mean_a, mean_b = _local_mean(a), _local_mean(b)
    variances = _local_mean(a * a + b * b) - mean_a**2 - mean_b**2
    covariance = _local_mean(a * b) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    return float((numerator / ((mean_a**2 + mean_b**2 + C1) * (variances + C2))).mean())


def _local_mean(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the Gaussian mean around each pixel whose whole window lies inside: (H, W) -> (H - 10, W - 10)."""
    import cv2

    distance = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(distance**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    edge = WINDOW // 2
    filtered: NDArray[np.float64] = cv2.sepFilter2D(plane, cv2.CV_64F, kernel, kernel)
    return filtered[edge:-edge, edge:-edge]
