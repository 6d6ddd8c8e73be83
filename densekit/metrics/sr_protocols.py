"""The protocols under which super-resolved pictures are scored: which planes are compared, and how much is cropped.

Scores of different protocols differ by whole decibels, so a score is always stored with its protocol's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.color import LUMA, rgb_to_y
from densekit.errors import ConfigError, DataError, suggest

Array = NDArray[Any]
Planes = NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """How a pair of pictures becomes a score.

    Attributes:
        name: As written beside every score.
        description: One line for tables and help: what is compared, and whose reports are made so.
        values: (H, W, C) or (H, W) uint8 -> what is compared, (H, W) or (H, W, C) float64 in 0..255.
        scale_border: Pixels cropped from each side, in multiples of the scale.
        extra_border: Pixels cropped from each side in addition.
    """

    name: str
    description: str
    values: Callable[[Array], Planes]
    scale_border: int = 1
    extra_border: int = 0

    def border(self, scale: int) -> int:
        """Returns the number of pixels cropped from each side."""
        return self.scale_border * scale + self.extra_border


def stored(picture: Array) -> Planes:
    """Returns the channels as they are."""
    return picture.astype(np.float64)


def matlab_y(picture: Array) -> Planes:
    """Returns the BT.601 luma rounded half up to whole numbers, as MATLAB's rgb2ycbcr does with uint8.

    The sums are whole numbers of 1 / 255000, so that no tie is left to chance.
    """
    return ((2 * _weighted(picture, (65481, 128553, 24966)) + 255_000) // 510_000 + 16).astype(np.float64)


def kair_y(picture: Array) -> Planes:
    """Returns the BT.601 luma rounded half to even to whole numbers, as rgb2ycbcr of KAIR does with uint8."""
    return np.round(_weighted(picture, LUMA) / 255 + 16)


def basicsr_y(picture: Array) -> Planes:
    """Returns the BT.601 luma by BasicSR's steps: / 255 in float32, the sum in float64, the rest in float32."""
    unit = picture.astype(np.float32) / np.float32(255)
    luma = ((_weighted(unit, LUMA) + 16) / 255).astype(np.float32)
    return (luma * np.float32(255)).astype(np.float64)


def edsr_y(picture: Array) -> Planes:
    """Returns the luma of EDSR-PyTorch: its coefficients, of 256 and cut to three digits, and no rounding."""
    return 16 + _weighted(picture, (65.738, 129.057, 25.064)) / 256


def yjn870_y(picture: Array) -> Planes:
    """Returns the luma of yjn870's repositories: 64.738 where 65.738 is meant, so that red errors count less."""
    return 16 + _weighted(picture, (64.738, 129.057, 25.064)) / 256


def full_range_y(picture: Array) -> Planes:
    """Returns the luma of JPEG in 0..255, not rounded: errors weigh 255 / 219 times as much, 1.32 dB."""
    return _weighted(picture, (0.299, 0.587, 0.114)).astype(np.float64)


def opencv_y(picture: Array) -> Planes:
    """Returns the luma of JPEG in whole numbers of 0..255, by OpenCV's fixed-point sum."""
    return ((_weighted(picture, (4899, 9617, 1868)) + 8192) // 16384).astype(np.float64)


def grey_is_y(picture: Array) -> Planes:
    """Returns the BT.601 luma of colour, and the samples of a grey picture as they are."""
    return rgb_to_y(picture) if picture.ndim == 3 and picture.shape[2] == 3 else stored(picture)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "rdn-y",
            "BT.601 luma, not rounded; `scale` pixels cropped from each side; the literature since VDSR, and RDN",
            rgb_to_y,
        ),
        Protocol("rgb", "all channels as stored; `scale` pixels cropped; BasicSR's and mmagic's model zoos", stored),
        Protocol("basicsr-y", "as rdn-y in float32; BasicSR with test_y_channel, Real-ESRGAN, HAT", basicsr_y),
        Protocol("kair-y", "BT.601 luma rounded to whole numbers; `scale` pixels cropped; KAIR", kair_y),
        Protocol("matlab-y", "as kair-y, ties rounded up; MATLAB's rgb2ycbcr on uint8", matlab_y),
        Protocol("edsr-y", "BT.601 luma by /256; `scale` pixels cropped; EDSR-PyTorch, RCAN on Set5..", edsr_y),
        Protocol(
            "edsr-div2k", "all channels; `scale` + 6 pixels cropped; EDSR-PyTorch on DIV2K", stored, extra_border=6
        ),
        Protocol("yjn870-y", "luma with 64.738 for 65.738; `scale` cropped; yjn870, super-image", yjn870_y),
        Protocol("full-range-y", "luma of JPEG; `scale` cropped; kornia's and piq's grey, pyiqa's yiq", full_range_y),
        Protocol("opencv-y", "luma of JPEG, rounded; `scale` cropped; OpenCV's and Pillow's YCbCr", opencv_y),
        Protocol("no-crop-y", "as rdn-y, nothing cropped; idealo's ISR", rgb_to_y, scale_border=0),
        Protocol("grey-y", "as rdn-y, but grey samples are Y themselves; SRCNN, SelfExSR (Set14 30.24)", grey_is_y),
    )
}


def compared(sr: Array, hr: Array, protocol: str, scale: int, least: int) -> tuple[Planes, Planes]:
    """Returns what the protocol compares of each: (h, w, C) float64 in 0..255, borders cropped.

    Raises:
        ConfigError: an unknown protocol, or a scale below 1.
        DataError: pictures of unequal shape, not uint8, or with less than `least` pixels inside the border.
    """
    rule = PROTOCOLS.get(protocol)
    if rule is None:
        raise ConfigError(
            f"protocol {protocol!r} is unknown; expected one of {', '.join(PROTOCOLS)}{suggest(protocol, PROTOCOLS)}"
        )
    if scale < 1:
        raise ConfigError(f"scale {scale} is not possible; expected an integer of at least 1")
    sr, hr = as_array(sr), as_array(hr)
    if sr.shape != hr.shape:
        raise DataError(
            f"found a result of shape {sr.shape} and an original of shape {hr.shape}; expected equal shapes"
        )
    check_picture(sr, "result")
    check_picture(hr, "original")
    border = rule.border(scale)
    height, width = (n - 2 * border for n in sr.shape[:2])
    if min(height, width) < least:
        raise DataError(
            f"found pictures of {sr.shape[0]} x {sr.shape[1]} pixels; expected at least {least + 2 * border} each way, "
            f"since protocol {protocol} crops {border} from each side"
        )
    inside = (slice(border, border + height), slice(border, border + width))
    return np.atleast_3d(rule.values(sr[inside])), np.atleast_3d(rule.values(hr[inside]))


def as_array(picture: Any) -> Array:
    """Returns a picture as an array: itself, or what a tensor (H, W, C) holds."""
    return picture.cpu().numpy() if hasattr(picture, "cpu") else np.asarray(picture)


def check_picture(picture: Array, name: str) -> None:
    """Passes (H, W, C) and (H, W) uint8.

    Raises:
        DataError: any other array.
    """
    if picture.dtype != np.uint8:
        raise DataError(f"found {_an(name)} of {picture.dtype}; expected uint8, clipped and rounded")
    if picture.ndim not in (2, 3):
        raise DataError(f"found {_an(name)} of shape {picture.shape}; expected (H, W, C) or (H, W)")


def _an(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _weighted(picture: Array, weights: tuple[Any, ...]) -> Array:
    """Returns (H, W): the weighted sum of red, green and blue; grey counts as three equal channels."""
    if picture.ndim == 2 or picture.shape[2] == 1:
        return picture.reshape(picture.shape[:2]) * np.array(weights).sum()
    if picture.shape[2] != 3:
        raise DataError(f"cannot take the luma of shape {picture.shape}; expected (H, W, 3), (H, W, 1) or (H, W)")
    return picture @ np.array(weights)
