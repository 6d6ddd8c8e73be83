"""What MATLAB's bicubic computes: which input samples make an output sample, and with which weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from densekit.errors import ConfigError

Array = NDArray[Any]
Border = Literal["clamp", "mirror"]
Rounding = Literal["each-pass", "once"]

# Arithmetic that were exact would meet .5 exactly at scales such as 1/2 and 1/6; float64 misses it by up to 1e-10.
TIE = 1e-9  # added before rounding: what exact arithmetic rounds up is rounded up, on every device


@dataclass(frozen=True)
class ResizeRule:
    """What lies beyond the border, and when integer pictures are rounded."""

    border: Border
    rounding: Rounding


MODES: dict[str, ResizeRule] = {
    "benchmark": ResizeRule("clamp", "each-pass"),  # every published LR file: Set5, Set14, BSD100, Urban100
    "matlab-double": ResizeRule("mirror", "once"),  # newer MATLAB on `double` input
    "matlab-uint8": ResizeRule("mirror", "each-pass"),  # newer MATLAB on `uint8` input
}


@dataclass(frozen=True)
class Taps:
    """The linear map of one axis from n to m samples, its entries that are not 0.

    Attributes:
        row: (K,) output sample, 0..m-1.
        column: (K,) input sample, 0..n-1; a pair may occur more than once, where the border folds.
        weight: (K,) float64.
        lengths: (m, n).
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    weight: NDArray[np.float64]
    lengths: tuple[int, int]

    def transposed(self) -> Taps:
        """Returns the map that gradients take: from m to n samples."""
        return Taps(self.column, self.row, self.weight, self.lengths[::-1])

    def bands(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the matrix of weights cut into blocks of rows: the first column of each, and (blocks, block, width).

        The (m, n) matrix is a narrow band. As blocks, each a product with only the inputs it touches,
        it costs a small fraction of the whole product. Rows past m are 0.
        """
        (m, n), number = self.lengths, self.row // block
        low, high = np.full(-(-m // block), n, np.int64), np.zeros(-(-m // block), np.int64)
        np.minimum.at(low, number, self.column)
        np.maximum.at(high, number, self.column + 1)
        low = np.minimum(low, high)  # of transposed maps some rows are empty
        width = int((high - low).max())
        low = np.minimum(low, n - width)
        place = self.row * width + self.column - low[number]
        bands = np.bincount(place, self.weight, len(low) * block * width)  # adds up samples folded at a border
        return low, bands.astype(np.float64, copy=False).reshape(len(low), block, width)


@dataclass(frozen=True)
class Plan:
    """One resize, the maps of both axes.

    Attributes:
        taps: Of height and of width.
        order: The axis that is resized first, 0 for the height, and the other one.
        each_pass: Whether integers are rounded after each pass, else at the end alone.
    """

    taps: tuple[Taps, Taps]
    order: tuple[int, int]
    each_pass: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.taps[0].lengths[0], self.taps[1].lengths[0]


def plan(shape: tuple[int, ...], scale: float | None, size: tuple[int, int] | None, rule: ResizeRule) -> Plan:
    """Returns how to resize a picture of `shape`, (height, width).

    Raises:
        ConfigError: a factor or size that is not positive, or not exactly one of the two.
    """
    lengths, scales = _target(shape, scale, size)
    height, width = (_taps(n, m, factor, rule.border) for n, m, factor in zip(shape, lengths, scales, strict=True))
    order = (0, 1) if scales[0] <= scales[1] else (1, 0)  # the smaller factor first, else the height
    return Plan((height, width), order, rule.rounding == "each-pass")


def bicubic_phases(scale: int) -> NDArray[np.float64]:
    """Returns the weights of bicubic upscaling by an integer: (scale, 5), each row summing to 1.

    Row p makes the output samples p, p + scale, p + 2 * scale ... of one axis: its columns weight the input samples at
    offsets -2, -1, 0, 1, 2 from the input sample that holds the output one. One end of every row is 0.

    Raises:
        ConfigError: `scale` is below 1.
    """
    if scale < 1:
        raise ConfigError(f"bicubic upscaling by {scale} is not possible; expected an integer of at least 1")
    position = (np.arange(scale) + 0.5) / scale - 0.5
    return _cubic(np.arange(-2, 3) - position[:, None])


def _target(
    shape: tuple[int, ...], scale: float | None, size: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Returns the lengths of the result and the factors, each for height and width."""
    if size is not None and scale is None:
        if len(size) != 2 or min(size) < 1:
            raise ConfigError(f"size {size} is not possible; expected (height, width), both at least 1")
        return (int(size[0]), int(size[1])), (size[0] / shape[0], size[1] / shape[1])
    if scale is None or size is not None:
        raise ConfigError(f"found scale {scale} and size {size}; expected exactly one of them, the other one None")
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"scale {scale} is not possible; expected a positive number such as 2 or 1 / 4")
    # 1e-9: a scale such as 1 / 3 is a little off, and 9 samples must give 3
    height, width = (math.ceil(n * scale - 1e-9) for n in shape)
    return (height, width), (scale, scale)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the cubic convolution kernel with a = -0.5 at `x`."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0.0))


def _taps(n: int, m: int, scale: float, border: Border) -> Taps:
    """Returns the map of n samples to m."""
    shrink = min(scale, 1.0)  # below 1 the kernel is widened by 1 / scale: antialiasing
    width = 4 / shrink
    position = np.arange(1, m + 1) / scale + 0.5 * (1 - 1 / scale)  # 1-based, as in MATLAB
    left = np.floor(position - width / 2)
    index = left[:, None] + np.arange(math.ceil(width) + 2)
    weight = _cubic(shrink * (position[:, None] - index))
    weight /= weight.sum(axis=1, keepdims=True)
    source = index.astype(np.int64) - 1
    if border == "clamp":
        source = source.clip(0, n - 1)
    else:
        source %= 2 * n  # 0 .. n-1, n-1 .. 0, repeated: the border sample itself is mirrored too
        source = np.minimum(source, 2 * n - 1 - source)
    row, tap = np.nonzero(weight)
    return Taps(row, source[row, tap], weight[row, tap], (m, n))
