"""The bottleneck layer's passes over a block's buffer, each by whichever way is fastest for its shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from densekit.blocks.kernels import plain
from densekit.blocks.kernels.choice import choose
from densekit.blocks.kernels.layout import is_for_kernels, pixel_stride

Ways = dict[str, Callable[..., Any]]


def bottleneck_forward(
    buffer: Tensor,
    c: int,
    a: Tensor,
    b: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    dilation: int,
    out_slice: Tensor,
) -> Tensor:
    """Returns `out_slice`, filled with conv3x3(relu(conv1x1(relu(a x + b)) + bias1)) of the first c channels x.

    The 3x3 convolution is padded with zeros to keep the size. For prediction: gradients are not recorded.

    Args:
        buffer: (B, C, H, W), stored channels last.
        c: channels that the layer reads.
        a: (c,), float32; what the first norm multiplies with.
        b: (c,), float32; what it adds.
        weight1: (N, c, 1, 1), of the type to compute in; rows scaled by the second norm.
        bias1: (N,); of the second norm.
        weight2: (k, N, 3, 3), of the type of `weight1`; read fastest where it is stored channels last.
        dilation: of the 3x3 convolution.
        out_slice: (B, k, H, W), channels of the buffer behind the first c, or maps of their own, channels last.

    Raises:
        ValueError: maps that are not stored channels last.
    """
    pixel_stride(buffer), pixel_stride(out_slice)
    args = (buffer[:, :c], a, b, weight1, bias1, weight2, dilation, out_slice)
    ways: Ways = {"torch": plain.bottleneck_forward}
    if is_for_kernels(buffer, weight1):
        ways |= bottleneck_ways(weight2.shape[0], dilation)
    return run("bottleneck_forward", ways, args)


def pointwise_measured(buffer: Tensor, c: int, a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns u = conv1x1(relu(a x + b)) of the first c channels x, and mean and biased variance of its channels.

    Args:
        buffer: (B, C, H, W), stored channels last.
        c: channels that the layer reads.
        a: (c,), float32; what the first norm multiplies with.
        b: (c,), float32; what it adds.
        weight: (N, c, 1, 1), of the type to compute in.

    Shapes: u (B, N, H, W) of the type of the weight; the statistics, of u as it is rounded, (N,) in float32.

    Raises:
        ValueError: maps that are not stored channels last.
    """
    pixel_stride(buffer)
    args = (buffer[:, :c], a, b, weight)
    ways: Ways = {"torch": plain.pointwise_measured}
    if is_for_kernels(buffer, weight):
        ways |= measured_ways()
    return run("pointwise_measured", ways, args)


def pointwise_backward(
    du: Tensor,
    buffer: Tensor,
    c: int,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    mean: Tensor,
    scale: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the weight's gradient, and for each of the first c channels x the sums of dz and of dz (x - mean).

    dz is the gradient of z = a x + b where relu(z) was convolved to u; `scale` dz is added to the first c channels of
    `grad` in place.

    Args:
        du: (B, N, H, W), the gradient of u, stored channels last, of the weight's type.
        buffer: (B, C, H, W), stored channels last.
        c: channels that the layer reads.
        a: as in the forward pass.
        b: as in the forward pass.
        weight: as in the forward pass.
        mean: (c,), float32; of the first norm, so that no difference of large sums is taken later; zeros for the sum
            of dz x.
        scale: (c,), float32; the first norm's gamma, or a where its statistics are constants.
        grad: (B, C, H, W), stored channels last; the buffer's gradient.

    Shapes: the weight's gradient (N, c, 1, 1), the sums (c,); float32.

    Raises:
        ValueError: maps that are not stored channels last.
    """
    pixel_stride(du), pixel_stride(buffer), pixel_stride(grad)
    args = (du, buffer[:, :c], a, b, weight, mean, scale, grad[:, :c])
    ways: Ways = {"torch": plain.pointwise_backward}
    if is_for_kernels(buffer, weight):
        ways |= backward_ways(weight.shape[0])
    return run("pointwise_backward", ways, args, added=(7,))


@functools.cache
def bottleneck_ways(growth_rate: int, dilation: int) -> Ways:
    """Returns the kernels for a bottleneck layer: one after the other, and both in one where its margins are small."""
    from densekit.blocks.kernels import fused, pointwise, window

    def in_two(
        x: Tensor, a: Tensor, b: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, dilation: int, out: Tensor,
        *, rows: int,
    ) -> Tensor:  # fmt: skip
        return window.convolve(pointwise.bottleneck(x, a, b, weight1, bias1, rows), weight2, dilation, out, rows)

    ways: Ways = {f"triton, two kernels, tiles of {rows}": partial(in_two, rows=rows) for rows in (64, 128)}
    for tall in (8, 16):
        # Half of a tile's rows at most may be margin, and its new channels must fit one tile.
        if 4 * dilation <= tall and growth_rate <= 128:
            ways[f"triton, one kernel, tiles of {tall} x {fused.WIDTH}"] = partial(fused.bottleneck_forward, tall=tall)
    return ways


@functools.cache
def measured_ways() -> Ways:
    """Returns the kernel for the 1x1 convolution in training, by its tiles."""
    from densekit.blocks.kernels import pointwise

    return {f"triton, tiles of {rows}": partial(pointwise.measured, rows=rows) for rows in (64, 128)}


@functools.cache
def backward_ways(width: int) -> Ways:
    """Returns the kernel for its gradients, by its tiles; none for a bottleneck too wide for it."""
    from densekit.blocks.kernels import gradient

    if width > gradient.MOST_WIDTH:
        return {}
    return {
        f"triton, tiles of {rows} x {channels}": partial(gradient.pointwise_backward, rows=rows, channels=channels)
        for rows, channels in ((64, 64), (32, 64))
    }


@torch.no_grad()
def run(name: str, ways: Ways, args: Sequence[Any], added: Sequence[int] = ()) -> Any:
    """Returns what the fastest way makes of `args`."""
    if len(ways) == 1:
        return next(iter(ways.values()))(*args)
    key = (name, args[0].device, *map(described, args))
    with torch.cuda.device(args[0].device):  # where Triton launches
        return ways[choose(key, ways, *args, added=added)](*args)


def described(arg: Any) -> Any:
    """Returns what of an argument a kernel's speed depends on; vectors are as long as the maps have channels."""
    if not isinstance(arg, Tensor):
        return arg
    return None if arg.dim() == 1 else (arg.dtype, arg.shape, arg.stride())
