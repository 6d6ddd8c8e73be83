"""Losses of super-resolution, on tensors (B, C, H, W) of one shape in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.color import LUMA


def l1(sr: Tensor, hr: Tensor) -> Tensor:
    """Returns the mean absolute difference of two tensors of one shape."""
    return F.l1_loss(sr, hr)


def charbonnier(sr: Tensor, hr: Tensor) -> Tensor:
    """Returns the mean of sqrt(d d + 1e-6), an L1 that is smooth at 0. Source: Lai et al., LapSRN (CVPR 2017)."""
    return torch.sqrt((sr - hr).square() + 1e-6).mean()


def luma(sr: Tensor, hr: Tensor) -> Tensor:
    """Returns the mean absolute difference of RGB tensors (B, 3, H, W) in luma, plus a twentieth of those in colour.

    Benchmarks score the luma, in which the eye sees detail. B - Y and R - Y, which JPEG files hold coarsely, are only
    kept in place.
    """
    difference = sr - hr
    weights = torch.tensor(LUMA).to(difference) / sum(LUMA)
    y = torch.einsum("c,bchw->bhw", weights, difference)
    red, blue = difference[:, 0] - y, difference[:, 2] - y
    return y.abs().mean() + 0.05 * (blue.abs().mean() + red.abs().mean())


def fft(sr: Tensor, hr: Tensor) -> Tensor:
    """Returns the mean absolute difference of the 2D spectra, over real and imaginary parts.

    The transform is orthonormal, so that the loss is of the size of L1 whatever the crop; the plain one of the paper
    grows as the square root of the pixels. Computed in float32 at least.

    Source: Cho et al., MIMO-UNet (ICCV 2021), equation 8, which adds a tenth of it to L1.
    """
    difference = sr - hr  # the transform is linear: one instead of two
    if difference.dtype in (torch.float16, torch.bfloat16):
        difference = difference.float()
    return torch.view_as_real(torch.fft.rfft2(difference, norm="ortho")).abs().mean()


SR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "charbonnier": charbonnier,
    "luma": luma,
    "fft": fft,
}
