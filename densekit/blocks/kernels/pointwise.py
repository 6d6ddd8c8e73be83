"""Kernel A: affine, ReLU and 1x1 convolution in one pass over the first channels of a buffer."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from densekit.blocks.kernels.layout import empty_maps, pixels, power_of_two, precision


@triton.jit  # type: ignore[untyped-decorator]
def rectify(x: tl.tensor, a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Returns relu(a x + b) in float32 for a tile (rows, channels); NaN stays NaN, as in torch."""
    z = x.to(tl.float32) * a[None, :] + b[None, :]
    return tl.where(z < 0.0, 0.0, z)


@triton.jit  # type: ignore[untyped-decorator]
def rectified_product(
    x_ptr: tl.tensor,
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    w_ptr: tl.tensor,
    offset: tl.tensor,
    inside: tl.tensor,
    column: tl.tensor,
    C: tl.tensor,
    N: tl.tensor,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """Returns relu(a x + b) times the weight's transpose, a float32 tile (ROWS, COLUMNS).

    `offset` says where in x each row begins, `inside` which rows there are; x has C channels, the weight is (N, C).
    """
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, C, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        known = channel < C
        a = tl.load(a_ptr + channel, mask=known, other=0.0)
        b = tl.load(b_ptr + channel, mask=known, other=0.0)  # 0 and 0: a channel beyond the prefix adds nothing
        x = tl.load(x_ptr + offset[:, None] + channel[None, :], mask=inside[:, None] & known[None, :], other=0.0)
        w = tl.load(
            w_ptr + column[None, :] * C + channel[:, None], mask=(column < N)[None, :] & known[:, None], other=0.0
        )
        total = tl.dot(rectify(x, a, b).to(w.dtype), w, total, input_precision=PRECISION)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def pointwise_kernel(
    x_ptr: tl.tensor,
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    w_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    M: tl.tensor,
    C: tl.tensor,
    N: tl.tensor,
    x_stride: tl.tensor,
    MEASURED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Writes a tile of the product: with its column sums and sums of squares, or else after bias and ReLU."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside, made = row < M, column < N
    offset = row.to(tl.int64) * x_stride
    total = rectified_product(
        x_ptr, a_ptr, b_ptr, w_ptr, offset, inside, column, C, N, PRECISION, ROWS, COLUMNS, CHANNELS
    )
    out = out_ptr + row.to(tl.int64)[:, None] * N + column[None, :]
    mask = inside[:, None] & made[None, :]
    if MEASURED:
        rounded = total.to(out_ptr.dtype.element_ty)
        tl.store(out, rounded, mask=mask)
        value = tl.where(mask, rounded.to(tl.float32), 0.0)  # of what the next norm reads
        sums = sums_ptr + tl.program_id(0) * 2 * N + column
        tl.store(sums, tl.sum(value, 0), mask=made)
        tl.store(sums + N, tl.sum(value * value, 0), mask=made)
    else:
        total += tl.load(bias_ptr + column, mask=made, other=0.0).to(tl.float32)[None, :]
        tl.store(out, tl.where(total < 0.0, 0.0, total).to(out_ptr.dtype.element_ty), mask=mask)


def launch(
    x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, rows: int
) -> tuple[Tensor, Tensor | None]:
    """Returns the maps, and without a bias their sums and sums of squares, (2, N) in float64.

    Args:
        x: (B, c, H, W), a channel prefix of maps stored channels last.
        a: (c,), float32.
        b: (c,), float32.
        weight: (N, c, 1, 1).
        bias: (N,), followed by a ReLU; None for neither.
        rows: pixels of a tile, a power of two from 16 on.
    """
    matrix, width = pixels(x), weight.shape[0]
    out = empty_maps(x, width, weight.dtype)
    columns = power_of_two(width)
    grid = (triton.cdiv(len(matrix), rows), triton.cdiv(width, columns))
    sums = out.new_empty((grid[0], 2, width), dtype=torch.float32) if bias is None else None
    pointwise_kernel[grid](
        matrix, a, b, weight.contiguous(), bias, out, sums, len(matrix), x.shape[1], width, matrix.stride(0),
        MEASURED=bias is None, PRECISION=precision(), ROWS=rows, COLUMNS=columns, CHANNELS=32 if rows < 64 else 64,
        num_warps=8 if rows * columns > 8192 else 4, num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip
    # The second stage in float64, so that a variance is no difference of rounded sums; no atomics, so bits repeat.
    return out, None if sums is None else sums.sum(0, dtype=torch.float64)


def bottleneck(x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, rows: int) -> Tensor:
    """Returns relu(conv1x1(relu(a x + b)) + bias), (B, N, H, W) channels last."""
    return launch(x, a, b, weight, bias, rows)[0]


def measured(x: Tensor, a: Tensor, b: Tensor, weight: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns u = conv1x1(relu(a x + b)), and mean and biased variance of each of its channels in float32."""
    u, sums = launch(x, a, b, weight, None, rows)
    assert sums is not None
    mean, square = sums / (u.numel() // u.shape[1])
    return u, mean.float(), (square - mean * mean).clamp_(min=0).float()
