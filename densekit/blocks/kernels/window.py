"""The 3x3 convolution of kernel B by itself: it reads the bottleneck and writes the new channels where they belong."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from densekit.blocks.kernels.layout import pixels, power_of_two, precision


@triton.jit  # type: ignore[untyped-decorator]
def window_kernel(
    h_ptr: tl.tensor,
    w_ptr: tl.tensor,
    out_ptr: tl.tensor,
    M: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    dilation: tl.tensor,
    h_stride: tl.tensor,
    out_stride: tl.tensor,
    w_out: tl.tensor,
    w_in: tl.tensor,
    w_y: tl.tensor,
    w_x: tl.tensor,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Writes a tile (ROWS pixels, COLUMNS channels) of the convolution; pixels beyond the border count as 0."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    y, x = row // W % H, row % W
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    chunks = tl.cdiv(N, CHANNELS)
    for step in range(9 * chunks):  # one loop over taps and channels, which the compiler can pipeline
        tap, channel = step // chunks, step % chunks * CHANNELS + tl.arange(0, CHANNELS)
        dy, dx = (tap // 3 - 1) * dilation, (tap % 3 - 1) * dilation
        inside = (row < M) & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
        source = (row + dy * W + dx).to(tl.int64) * h_stride
        known = channel < N
        h = tl.load(h_ptr + source[:, None] + channel[None, :], mask=inside[:, None] & known[None, :], other=0.0)
        weight = w_ptr + tap // 3 * w_y + tap % 3 * w_x + channel[:, None] * w_in + column[None, :] * w_out
        w = tl.load(weight, mask=known[:, None] & (column < K)[None, :], other=0.0)
        total = tl.dot(h, w, total, input_precision=PRECISION)
    out = out_ptr + row.to(tl.int64)[:, None] * out_stride + column[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=(row < M)[:, None] & (column < K)[None, :])


def convolve(h: Tensor, weight: Tensor, dilation: int, out: Tensor, rows: int) -> Tensor:
    """Writes the 3x3 convolution of `h`, padded with zeros to keep its size, into `out` and returns it.

    Args:
        h: (B, N, H, W), channels last.
        weight: (k, N, 3, 3) of the type of `h`; read fastest where it is stored channels last.
        dilation: of the convolution, and so its padding.
        out: (B, k, H, W), channels of maps stored channels last.
        rows: pixels of a tile, a power of two from 16 on.
    """
    matrix, target = pixels(h), pixels(out)
    growth, width = weight.shape[:2]
    columns = power_of_two(growth)
    window_kernel[(triton.cdiv(len(matrix), rows), triton.cdiv(growth, columns))](
        matrix, weight, target, len(matrix), *h.shape[2:], width, growth, dilation, matrix.stride(0), target.stride(0),
        *weight.stride(), PRECISION=precision(), ROWS=rows, COLUMNS=columns, CHANNELS=64,
        num_warps=4, num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip
    return out
