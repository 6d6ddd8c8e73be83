"""Kernel B: the bottleneck layer as one kernel, its bottleneck in a scratch memory that stays in the GPU's cache."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from densekit.blocks.kernels.layout import num_processors, pixels, power_of_two, precision
from densekit.blocks.kernels.pointwise import rectified_product

WIDTH = 16  # pixels of a tile's row, margins included


@triton.jit  # type: ignore[untyped-decorator]
def fused_kernel(
    x_ptr: tl.tensor,
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    w1_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    w2_ptr: tl.tensor,
    out_ptr: tl.tensor,
    scratch_ptr: tl.tensor,
    tiles: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    C: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    x_stride: tl.tensor,
    out_stride: tl.tensor,
    w_out: tl.tensor,
    w_in: tl.tensor,
    w_y: tl.tensor,
    w_x: tl.tensor,
    DILATION: tl.constexpr,
    PRECISION: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROWTH: tl.constexpr,
) -> None:
    """Writes one tile of the new channels after another; a tile has TALL x WIDE pixels, its margins included.

    A program cannot look at its neighbours' rows of a tile in registers, so it writes the bottleneck into a scratch
    of its own, (TALL WIDE, COLUMNS), and reads it shifted. The scratch is used again for each tile: it never leaves the
    cache, and of the bottleneck nothing is written to memory.
    """
    inner_tall: tl.constexpr = TALL - 2 * DILATION
    inner_wide: tl.constexpr = WIDE - 2 * DILATION
    across = tl.cdiv(W, inner_wide)
    down = tl.cdiv(H, inner_tall)
    pixel = tl.arange(0, TALL * WIDE)
    y, x = pixel // WIDE, pixel % WIDE
    growth = tl.arange(0, GROWTH)
    scratch = scratch_ptr + tl.program_id(0) * (TALL * WIDE * COLUMNS)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        top = tile // across % down * inner_tall
        left = tile % across * inner_wide
        first = (tile // (across * down)).to(tl.int64) * H * W
        outer_y, outer_x = top - DILATION + y, left - DILATION + x
        inside = (outer_y >= 0) & (outer_y < H) & (outer_x >= 0) & (outer_x < W)
        offset = (first + outer_y * W + outer_x) * x_stride
        kept = (y < inner_tall) & (x < inner_wide) & (top + y < H) & (left + x < W)
        total = tl.zeros((TALL * WIDE, GROWTH), tl.float32)
        for start in range(0, N, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            h = rectified_product(
                x_ptr, a_ptr, b_ptr, w1_ptr, offset, inside, column, C, N,
                PRECISION, TALL * WIDE, COLUMNS, CHANNELS,
            )  # fmt: skip
            h += tl.load(bias_ptr + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
            h = tl.where(inside[:, None], tl.where(h < 0.0, 0.0, h), 0.0)  # the padding is of the activated maps
            local = tl.arange(0, COLUMNS)
            tl.store(scratch + pixel[:, None] * COLUMNS + local[None, :], h.to(scratch_ptr.dtype.element_ty))
            tl.debug_barrier()  # what other threads of this program wrote is read next
            chunks: tl.constexpr = COLUMNS // CHANNELS
            for step in range(9 * chunks):
                tap, channel = step // chunks, step % chunks * CHANNELS + tl.arange(0, CHANNELS)
                source = pixel + (tap // 3 * WIDE + tap % 3) * DILATION
                part = tl.load(scratch + source[:, None] * COLUMNS + channel[None, :], mask=kept[:, None], other=0.0)
                weight = w2_ptr + tap // 3 * w_y + tap % 3 * w_x
                w = tl.load(
                    weight + (start + channel)[:, None] * w_in + growth[None, :] * w_out,
                    mask=(start + channel < N)[:, None] & (growth < K)[None, :],
                    other=0.0,
                )
                total = tl.dot(part, w, total, input_precision=PRECISION)
            tl.debug_barrier()  # before the scratch is written again
        target = (first + (top + y) * W + left + x) * out_stride
        tl.store(
            out_ptr + target[:, None] + growth[None, :],
            total.to(out_ptr.dtype.element_ty),
            mask=kept[:, None] & (growth < K)[None, :],
        )


def bottleneck_forward(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    dilation: int,
    out: Tensor,
    *,
    tall: int,
) -> Tensor:
    """As `plain.bottleneck_forward`; `tall` is the height of a tile, a power of two above twice the dilation."""
    matrix, target = pixels(x), pixels(out)
    width, growth = weight1.shape[0], weight2.shape[0]
    columns = power_of_two(width)
    inner_tall, inner_wide = tall - 2 * dilation, WIDTH - 2 * dilation
    batch, _, height, breadth = x.shape
    tiles = batch * triton.cdiv(height, inner_tall) * triton.cdiv(breadth, inner_wide)
    programs = min(tiles, 2 * num_processors(x.device))
    scratch = weight1.new_empty((programs, tall * WIDTH, columns))
    fused_kernel[(programs,)](
        matrix, a, b, weight1.contiguous(), bias1, weight2, target, scratch, tiles, height, breadth, x.shape[1],
        width, growth, matrix.stride(0), target.stride(0), *weight2.stride(),
        DILATION=dilation, PRECISION=precision(), TALL=tall, WIDE=WIDTH, COLUMNS=columns, CHANNELS=min(64, columns),
        GROWTH=power_of_two(growth), num_warps=8, num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip
    return out
