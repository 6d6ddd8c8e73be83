"""The resize of tensors, on their own device; float ones with gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from densekit.errors import DataError
from densekit.resize.arrays import resize_array
from densekit.resize.rule import TIE, Plan, Taps

BLOCK = 16  # output samples in one product, as for arrays
INTEGERS = (torch.uint8, torch.uint16)


def check_tensor(image: Tensor) -> None:
    """Passes (C, H, W) and (B, C, H, W) of uint8, uint16 or float.

    Raises:
        DataError: any other tensor.
    """
    if not (image.dtype in INTEGERS or image.is_floating_point()):
        raise DataError(f"cannot resize a tensor of {image.dtype}; expected uint8, uint16 or float")
    if image.dim() not in (3, 4) or 0 in image.shape:
        raise DataError(
            f"cannot resize a tensor of shape {tuple(image.shape)}; expected (C, H, W) or (B, C, H, W), none of them 0"
        )


def resize_tensor(image: Tensor, plan: Plan) -> Tensor:
    """Returns `image` resized along its last two axes, in its own dtype and on its own device."""
    if image.dtype in INTEGERS and in_main_memory(image):
        planes = [resize_array(plane, plan) for plane in image.flatten(0, -3).numpy()]
        return torch.from_numpy(np.stack(planes)).reshape(*image.shape[:-2], *plan.size)
    limit = torch.iinfo(image.dtype).max if image.dtype in INTEGERS else None
    # float64 is also what no autocast and no TF32 setting shortens
    values = image.flatten(0, -3).to(torch.float32 if image.device.type == "mps" else torch.float64)
    with torch.autocast(image.device.type, enabled=False):
        for axis, last in zip(plan.order, (False, True), strict=True):
            values = values if axis == 0 else values.transpose(1, 2)
            values = _Resize.apply(values, plan.taps[axis], plan.taps[axis].transposed())
            values = values if axis == 0 else values.transpose(1, 2)
            if limit is not None and (last or plan.each_pass):
                values = (values + (0.5 + TIE)).floor().clamp(0, limit)
    return values.to(image.dtype).reshape(*image.shape[:-2], *plan.size)


def in_main_memory(image: Tensor) -> bool:
    """Returns whether NumPy can read the tensor where it lies."""
    return image.device.type == "cpu"


class _Resize(torch.autograd.Function):
    """(N, n, A) -> (N, m, A) by `taps`; gradients go the same way back by `back`, without atomic additions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Taps, back: Taps) -> Tensor:
        ctx.taps = taps, back
        lows, bands = taps.bands(BLOCK)
        touched = torch.from_numpy(lows[:, None] + np.arange(bands.shape[2])).to(x.device)
        values = torch.from_numpy(bands).to(x.device, x.dtype) @ x[:, touched]  # (N, blocks, BLOCK, A)
        return values.flatten(1, 2)[:, : taps.lengths[0]]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        taps, back = ctx.taps
        return _Resize.apply(gradients[0], back, taps), None, None
