"""The one colour conversion that scores depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.errors import DataError

LUMA = (65.481, 128.553, 24.966)  # BT.601, limited range; they sum to 219, so that white gives 235


def rgb_to_y(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the BT.601 luma of `rgb`: (H, W) float64 in 16..235, not rounded.

    Y / 255 passes through float32, as in the evaluation script of RDN's authors: their table then comes out in
    all its printed digits, and the step moves Y by less than 1e-5.

    Args:
        rgb: (H, W, 3), or grey (H, W) or (H, W, 1), which counts as three equal channels; uint8, or float in 0..255.

    Raises:
        DataError: another shape or dtype.

    Source: MATLAB's rgb2ycbcr; Evaluate_PSNR_SSIM.m of the RDN repository.
    """
    if rgb.dtype != np.uint8 and rgb.dtype.kind != "f":
        raise DataError(f"cannot take the luma of {rgb.dtype}; expected uint8, or float in 0..255")
    if rgb.ndim not in (2, 3) or (rgb.ndim == 3 and rgb.shape[2] not in (1, 3)):
        raise DataError(f"cannot take the luma of shape {rgb.shape}; expected (H, W, 3), (H, W, 1) or (H, W)")
    if rgb.ndim == 2 or rgb.shape[2] == 1:
        weighted = rgb.reshape(rgb.shape[:2]) * float(sum(LUMA))
    else:
        weighted = rgb @ np.array(LUMA)
    return ((weighted / 255 + 16) / 255).astype(np.float32).astype(np.float64) * 255
