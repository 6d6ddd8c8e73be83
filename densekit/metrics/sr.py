"""PSNR of super-resolved pictures by a named protocol, all protocols side by side, and agreement with the input."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from densekit.errors import DataError
from densekit.metrics.similarity import PEAK, WINDOW, ssim_of
from densekit.metrics.sr_protocols import PROTOCOLS, as_array, check_picture, compared
from densekit.resize import imresize


class Score(NamedTuple):
    """PSNR in dB and SSIM of one pair of pictures by one protocol."""

    protocol: str
    psnr: float
    ssim: float


class Consistency(NamedTuple):
    """How well a result, reduced again, agrees with the picture it was made from.

    Attributes:
        psnr: Of all samples, no border cropped, in dB; infinity where they are equal.
        max_difference: The largest difference of one sample, in levels of 0..255.
    """

    psnr: float
    max_difference: int


def psnr(sr: NDArray[Any], hr: NDArray[Any], *, protocol: str = "rdn-y", scale: int) -> float:
    """Returns the peak signal-to-noise ratio of `sr` against `hr` in dB; infinity where they are equal.

    A test set's figure is the mean of the figures of its pictures.

    Args:
        sr: (H, W, 3), (H, W, 1) or (H, W) uint8: the network's result, clipped and rounded. A grey picture counts
            as three equal channels, except by the protocol `grey-y`. A tensor (H, W, C) will do too.
        hr: The original, same shape: cropped at the bottom and right to a multiple of `scale`.
        protocol: A name in `PROTOCOLS`.
        scale: The upscaling factor; it decides how many pixels of border are left out.

    Raises:
        ConfigError: an unknown protocol, or a scale below 1.
        DataError: pictures of unequal shape, not uint8, or too small for the border.
    """
    return _psnr(*compared(sr, hr, protocol, scale, least=1))


def explain(sr: NDArray[Any], hr: NDArray[Any], *, scale: int) -> list[Score]:
    """Returns the scores of one pair by every protocol, the default one first.

    Arguments and errors are those of `ssim`, under the protocol that crops most.
    """
    scores = []
    for name in PROTOCOLS:
        a, b = compared(sr, hr, name, scale, least=WINDOW)
        scores.append(Score(name, _psnr(a, b), ssim_of(a, b)))
    return scores


def lr_consistency(sr: NDArray[Any], lr: NDArray[Any], scale: int, mode: str = "benchmark") -> Consistency:
    """Returns how well `sr`, reduced by bicubic again, agrees with the `lr` it was made from.

    The original itself scores infinity and 0. A network that invents content contradicts its input, and scores low.

    Args:
        sr: (H, W, C) or (H, W) uint8.
        lr: The input, uint8: 1 / `scale` as high and wide.
        scale: The upscaling factor.
        mode: How `lr` was made, a name in `densekit.resize.MODES`.

    Raises:
        ConfigError: an unknown mode, or a scale below 1.
        DataError: sizes that do not belong together, or not uint8.
    """
    sr, lr = as_array(sr), as_array(lr)
    check_picture(sr, "result")
    check_picture(lr, "input")
    reduced = imresize(sr, 1 / scale if scale > 0 else scale, mode)
    if reduced.shape != lr.shape:
        raise DataError(
            f"found a result of shape {sr.shape} and an input of shape {lr.shape}; expected the result {scale} times "
            "as high and wide, with as many channels"
        )
    difference = reduced.astype(np.float64) - lr
    return Consistency(_psnr(difference, np.zeros_like(difference)), int(np.abs(difference).max()))


def _psnr(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    mse = float(np.square(a - b).mean())
    return 10 * math.log10(PEAK**2 / mse) if mse else math.inf
