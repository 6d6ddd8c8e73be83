"""Chains of 3x3 convolutions, each of all maps before it, by Winograd's algorithm with 4x4 pixels at once.

A map is cut into windows of 6x6 pixels, four apart; transformed windows times transformed kernels, summed over the
channels, are the transformed 4x4 pixels that each window gives: 36 products where the plain sum takes 144. A dense
block gains more by it than a single convolution: a map's windows are transformed once for all layers that read them.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.blocks.inference.cpu import has_fast_products

KERNEL, CORE = 3, 4  # pixels on a side: of the kernel, and of what a window gives
WINDOW = CORE + KERNEL - 1
# Infinity is the last one. Errors are those of plain sums (AVX2) or 1.7 times as large (AVX-512, whose plain sums are
# better ones); with 0, 1, -1, 2, -2 they are two to four times as large again.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
PIECE = 144  # windows, about: what is made of them stays in the caches
# Below, a chain takes as long as plain sums or longer; oneDNN makes more of a second core.
LEAST_GAIN, LEAST_GAIN_SHARED = 45, 60
FEW = 32  # windows; for fewer, to read transformed kernels, which are four times as large, takes longer than the rest


class Kernels(NamedTuple):
    """A convolution of a chain: weights for each of the maps it reads, (C', C, 3, 3), bias (C',), and the activation.

    The slope is that of a leaky ReLU, 0 for a ReLU, None where there is none.
    """

    weights: Sequence[Tensor]
    bias: Tensor
    slope: float | None


class WinogradChain:
    """Convolutions with padding 1, each of the input and of what all those before it gave, one after the other.

    Args:
        convs: in float32, on a CPU.
    """

    def __init__(self, convs: Sequence[Kernels]) -> None:
        self.biases: list[Tensor] = [conv.bias for conv in convs]
        self.slopes: list[float | None] = [conv.slope for conv in convs]
        self.widths: list[int] = [len(bias) for bias in self.biases]
        self.matrices: list[list[Tensor]] = [list(map(transformed, conv.weights)) for conv in convs]

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the input and what each convolution gives, as channels of one tensor, with a border of zeros.

        Shapes: (B, C, H, W) -> (B, C + sum of C', H + 2 or more, W + 2 or more), channels last, pixels from (1, 1) on.
        """
        batch, channels, height, width = x.shape
        rows, columns = -(-height // CORE), -(-width // CORE)
        pieces = min(rows, max(2, torch.get_num_threads()))
        bands = -(-rows // (pieces * max(1, PIECE // columns)))
        shape = bands, pieces, -(-rows // (bands * pieces)), columns
        maps = x.new_empty(batch, CORE * math.prod(shape[:3]) + 2, CORE * columns + 2, channels + sum(self.widths))
        for border in (maps[:, 0], maps[:, :, 0], maps[:, height + 1 :], maps[:, :, width + 1 :]):
            border.zero_()
        maps[:, 1 : height + 1, 1 : width + 1, :channels] = x.permute(0, 2, 3, 1)
        for image in maps:
            Sweep(self, image, (height, width), shape).run()
        return maps.permute(0, 3, 1, 2)


class Sweep:
    """One image through a chain: band after band of rows, in which a convolution is one band behind the one before it.

    So the transformed windows of as many bands as there are convolutions are alive, not those of the whole image. The
    pieces of a band are there for the threads.

    Args:
        chain: what is computed.
        maps: (H, W, C), the input and its border, and room for the rest.
        size: height and width of the image.
        shape: bands, pieces of a band, rows of windows of a piece, windows in a row.
    """

    def __init__(
        self, chain: WinogradChain, maps: Tensor, size: tuple[int, int], shape: tuple[int, int, int, int]
    ) -> None:
        self.chain: WinogradChain = chain
        self.maps: Tensor = maps
        self.size: tuple[int, int] = size
        self.shape: tuple[int, int, int, int] = shape
        bands, pieces, rows, columns = shape
        length = len(chain.widths)
        self.edges: list[int] = [0, *(maps.shape[2] - sum(chain.widths[i:]) for i in range(length + 1))]
        widths = [self.edges[1], *chain.widths]
        self.scratch: Tensor = maps.new_empty(2, pieces * (WINDOW**2 + 1) * rows * columns * max(widths))
        self.known: list[list[Tensor]] = [
            [maps.new_empty(pieces, WINDOW**2, rows * columns, width) for width in widths[:length]]
            for _ in range(min(bands, length))
        ]

    def run(self) -> None:
        """Fills the channels behind the input's."""
        bands, length = self.shape[0], len(self.chain.widths)
        for step in range(bands + length - 1):
            for i in range(length):
                if 0 <= step - i < bands:
                    known = self.known[(step - i) % length][: i + 1]
                    self.cut(i, step - i, known[i])
                    self.convolve(i, step - i, known)

    def cut(self, i: int, band: int, result: Tensor) -> None:
        """Transforms the windows of the maps that the convolution `i` is the first to read."""
        windows = self.view(band, self.edges[i], self.edges[i + 1], WINDOW, 0)
        cut = self.scratch[0, : windows.numel()].view(windows.shape)
        cut.copy_(windows)
        pieces = len(result)
        each = TRANSFORMS.windows.expand(pieces, -1, -1)
        torch.bmm(each, cut.view(pieces, WINDOW**2, -1), out=result.flatten(2))

    def convolve(self, i: int, band: int, known: list[Tensor]) -> None:
        """Makes the maps of the convolution `i` from the transformed windows of all that it reads."""
        start, end = self.edges[i + 1 : i + 3]
        _, pieces, rows, columns = self.shape
        shape = pieces, WINDOW**2 + 1, rows * columns, end - start
        sums = self.scratch[0, : math.prod(shape)].view(shape)
        sums[:, -1] = self.chain.biases[i]
        for piece, total in enumerate(sums[:, :-1]):
            for j, (windows, matrices) in enumerate(zip(known, self.chain.matrices[i], strict=True)):
                if j == 0:
                    torch.bmm(windows[piece], matrices, out=total)
                else:
                    total.baddbmm_(windows[piece], matrices)
        target = self.view(band, start, end, CORE, 1)
        made = self.scratch[1, : target.numel()].view(pieces, CORE**2, -1)
        torch.bmm(TRANSFORMS.outputs.expand(pieces, -1, -1), sums.flatten(2), out=made)
        made, slope = made.view(target.shape), self.chain.slopes[i]
        if slope == 0:
            torch.clamp_min(made, 0, out=target)
        else:
            target.copy_(made if slope is None else F.leaky_relu_(made, slope))
        self.clear(band, start, end)

    def clear(self, band: int, start: int, end: int) -> None:
        """Sets to 0 what lies behind the last row and column of the image."""
        _, pieces, rows, _ = self.shape
        (height, width), tall = self.size, CORE * pieces * rows
        first, last = 1 + band * tall, 1 + (band + 1) * tall
        if last > height + 1:
            self.maps[max(first, height + 1) : last, :, start:end] = 0
        if self.maps.shape[1] > width + 2:
            self.maps[first:last, width + 1 :, start:end] = 0

    def view(self, band: int, start: int, end: int, size: int, first: int) -> Tensor:
        """Returns (pieces, size, size, rows, columns, C): of each window, `size` pixels on a side from `first` on."""
        _, pieces, rows, columns = self.shape
        down, right, _ = self.maps.stride()
        stride = CORE * rows * down, down, right, CORE * down, CORE * right, 1
        corner = (first + CORE * band * pieces * rows) * down + first * right + start
        shape = pieces, size, size, rows, columns, end - start
        return self.maps.as_strided(shape, stride, self.maps.storage_offset() + corner)


def gain_of(read: Sequence[int], made: Sequence[int]) -> float:
    """Returns the products of a plain sum, in ninths, for each number that a chain transforms.

    Args:
        read: channels of the input and of what each convolution gives, the last one's left out.
        made: channels of what each gives.
    """
    products = sum(sum(read[: i + 1]) * width for i, width in enumerate(made))
    return products / (sum(read) + sum(made))


def is_chain_faster(x: Tensor, gain: float) -> bool:
    """Says whether a chain of that gain takes less time than plain sums on such maps."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not has_fast_products():
        return False
    windows = -(-x.shape[2] // CORE) * -(-x.shape[3] // CORE)
    return windows >= FEW and gain >= (LEAST_GAIN if torch.get_num_threads() == 1 else LEAST_GAIN_SHARED)


def without_border(maps: Tensor, x: Tensor) -> Tensor:
    """Returns the view of the pixels that a chain gives for `x`."""
    return maps[:, :, 1 : x.shape[2] + 1, 1 : x.shape[3] + 1]


def transformed(weight: Tensor) -> Tensor:
    """Returns 3x3 kernels (C', C, 3, 3) as matrices (36, C, C')."""
    taps = weight.permute(2, 3, 1, 0).double().reshape(KERNEL**2, -1)
    return (TRANSFORMS.kernels @ taps).float().view(-1, weight.shape[1], len(weight))


class Transforms(NamedTuple):
    """Matrices on what is flattened row by row."""

    windows: Tensor  # (36, 36): of 6x6 pixels
    kernels: Tensor  # (36, 9), float64: of 3x3 weights
    outputs: Tensor  # (16, 37): of products, and of the bias, which comes last


def transforms() -> Transforms:
    """Returns the transforms for one side, each applied to rows and to columns.

    A convolution multiplies polynomials. That is done at points: evaluate both there, multiply, interpolate.
    A correlation of windows is its transpose, so windows take the interpolation's, outputs the evaluation's.
    """
    points = torch.tensor(POINTS, dtype=torch.float64, device="cpu")

    def evaluation(length: int) -> Tensor:
        """Returns what evaluates `length` coefficients at all points; at infinity that is the last of them."""
        powers = points[:, None] ** torch.arange(length, device="cpu")
        return torch.cat([powers, torch.eye(length, dtype=torch.float64, device="cpu")[-1:]])

    windows, kernels, outputs = torch.linalg.inv(evaluation(WINDOW)).T, evaluation(KERNEL), evaluation(CORE).T
    windows, kernels, outputs = (torch.kron(side, side) for side in (windows, kernels, outputs))
    return Transforms(windows.float(), kernels, F.pad(outputs, (0, 1), value=1.0).float())


TRANSFORMS: Transforms = transforms()
