"""Kernel C: the gradients of affine, ReLU and 1x1 convolution in one pass over the first channels of a buffer."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from densekit.blocks.kernels.layout import num_processors, pixels, power_of_two, precision
from densekit.blocks.kernels.pointwise import rectify

MOST_WIDTH = 256  # channels of a bottleneck whose weight gradient fits a program's registers


@triton.jit  # type: ignore[untyped-decorator]
def gradient_kernel(
    du_ptr: tl.tensor,
    x_ptr: tl.tensor,
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    w_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    dw_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    M: tl.tensor,
    C: tl.tensor,
    N: tl.tensor,
    each: tl.tensor,
    du_stride: tl.tensor,
    x_stride: tl.tensor,
    grad_stride: tl.tensor,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Passes `each` tiles of pixels for CHANNELS channels, and writes its share of the sums over all pixels."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    column = tl.arange(0, COLUMNS)
    known, made = channel < C, column < N
    a = tl.load(a_ptr + channel, mask=known, other=0.0)
    b = tl.load(b_ptr + channel, mask=known, other=0.0)
    mean = tl.load(mean_ptr + channel, mask=known, other=0.0)
    scale = tl.load(scale_ptr + channel, mask=known, other=0.0)
    weight = made[:, None] & known[None, :]
    w = tl.load(w_ptr + column[:, None] * C + channel[None, :], mask=weight, other=0.0)
    dw = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    plain_sum = tl.zeros((CHANNELS,), tl.float32)
    centred_sum = tl.zeros((CHANNELS,), tl.float32)
    share = tl.program_id(1)
    for tile in range(share * each, tl.minimum((share + 1) * each, tl.cdiv(M, ROWS))):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside, line = row < M, row.to(tl.int64)
        du = tl.load(
            du_ptr + line[:, None] * du_stride + column[None, :], mask=inside[:, None] & made[None, :], other=0.0
        )
        mask = inside[:, None] & known[None, :]
        x = tl.load(x_ptr + line[:, None] * x_stride + channel[None, :], mask=mask, other=0.0)
        y = rectify(x, a, b).to(du.dtype)
        dy = tl.dot(du, w, input_precision=PRECISION)
        dz = tl.where(y <= 0.0, 0.0, dy)
        grad = grad_ptr + line[:, None] * grad_stride + channel[None, :]
        old = tl.load(grad, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad, (old + scale[None, :] * dz).to(grad_ptr.dtype.element_ty), mask=mask)
        plain_sum += tl.sum(dz, 0)
        centred_sum += tl.sum(dz * (x.to(tl.float32) - mean[None, :]), 0)
        dw = tl.dot(tl.trans(du), y, dw, input_precision=PRECISION)
    part = share.to(tl.int64)
    tl.store(dw_ptr + (part * N + column)[:, None] * C + channel[None, :], dw, mask=weight)
    tl.store(sums_ptr + part * 2 * C + channel, plain_sum, mask=known)
    tl.store(sums_ptr + part * 2 * C + C + channel, centred_sum, mask=known)


def pointwise_backward(
    du: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    mean: Tensor,
    scale: Tensor,
    grad: Tensor,
    *,
    rows: int,
    channels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain.pointwise_backward`; a program works on tiles of `rows` pixels by `channels` channels."""
    gradient, matrix, target = pixels(du), pixels(x), pixels(grad)
    (count, width), prefix = gradient.shape, x.shape[1]
    blocks, tiles = triton.cdiv(prefix, channels), triton.cdiv(count, rows)
    each = triton.cdiv(tiles, min(tiles, max(1, 4 * num_processors(x.device) // blocks)))
    shares = triton.cdiv(tiles, each)
    dw = matrix.new_empty((shares, width, prefix), dtype=torch.float32)
    sums = matrix.new_empty((shares, 2, prefix), dtype=torch.float32)
    gradient_kernel[(blocks, shares)](
        gradient, matrix, a, b, weight.contiguous(), mean, scale, target, dw, sums, count, prefix, width, each,
        gradient.stride(0), matrix.stride(0), target.stride(0), PRECISION=precision(), ROWS=rows,
        COLUMNS=power_of_two(width, most=MOST_WIDTH), CHANNELS=channels, num_warps=8, num_stages=2,
        enable_fp_fusion=True,
    )  # fmt: skip
    plain_sum, centred_sum = sums.sum(0)  # a fixed order, no atomics: bits repeat
    return dw.sum(0).view(weight.shape), plain_sum, centred_sum
