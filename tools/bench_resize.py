"""Measures imresize against the usual loop over output rows and columns. `python -m tools.bench_resize [--quick]`

Both compute the same rule, to the last bit, on one thread. They run in turn, A B A B, in CPU time; medians.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from densekit.resize import MODES, imresize

SHAPES = ((512, 512, 3), (1356, 2040, 3))  # a benchmark picture, and one of DIV2K
SCALES = {"1/2": 1 / 2, "1/3": 1 / 3, "1/4": 1 / 4, "2": 2.0, "3": 3.0, "4": 4.0}
MODE = "benchmark"


class Timing(NamedTuple):
    """Median seconds of imresize and of the loop, and their ratio."""

    ours: float
    loop: float

    @property
    def ratio(self) -> float:
        return self.loop / self.ours


def bicubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def resize_by_loop(
    image: NDArray[Any], scales: tuple[float, float], border: str, rounding: str, order: tuple[int, int] = (0, 1)
) -> NDArray[Any]:
    """Returns `image` resized one output row or column of one channel at a time, as ports of MATLAB's do."""
    x = np.atleast_3d(image).astype(np.float64)
    limit = np.iinfo(image.dtype).max if image.dtype.kind == "u" else None

    def rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
        # 1e-9: where exact arithmetic meets .5, noise must not decide
        return values if limit is None else np.clip(np.floor(values + 0.5 + 1e-9), 0, limit)

    for axis in order:
        n, scale = x.shape[axis], scales[axis]
        m, width = math.ceil(n * scale - 1e-9), 4 / min(scale, 1)
        taps = math.ceil(width) + 2
        padding = [(0, 0)] * 3
        padding[axis] = (taps, taps)
        padded = np.pad(x, padding, mode="edge" if border == "clamp" else "symmetric")
        x = np.empty([m if i == axis else k for i, k in enumerate(x.shape)])
        for j in range(m):
            u = (j + 1) / scale + 0.5 * (1 - 1 / scale)
            left = math.floor(u - width / 2)
            weights = np.array([bicubic(min(scale, 1) * (u - left - p)) for p in range(taps)])
            weights /= weights.sum()
            start = left - 1 + taps
            for c in range(x.shape[2]):
                if axis == 0:
                    x[j, :, c] = weights @ padded[start : start + taps, :, c]
                else:
                    x[:, j, c] = padded[:, start : start + taps, c] @ weights
        if rounding == "each-pass":
            x = rounded(x)
    x = rounded(x).astype(image.dtype)
    return x.reshape(*x.shape[:2], *image.shape[2:])


def measure(shape: tuple[int, int, int], scale: float, rounds: int) -> Timing:
    """Returns the timing of one case; the results must agree in every sample."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    border, rounding = MODES[MODE].border, MODES[MODE].rounding
    runs: tuple[Callable[[], NDArray[Any]], ...] = (
        lambda: imresize(image, scale, MODE),
        lambda: resize_by_loop(image, (scale, scale), border, rounding),
    )
    imresize(image[:64, :64], scale, MODE)  # the first call imports and starts what others find ready
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        results = []
        for run, times in zip(runs, seconds, strict=True):
            start = time.process_time()
            results.append(run())
            times.append(time.process_time() - start)
        np.testing.assert_array_equal(*results)
    return Timing(*map(statistics.median, seconds))


def rounds_of(shape: tuple[int, int, int], scale: float, rounds: int) -> int:
    """Returns how often a case is run: once where the loop takes minutes."""
    return rounds if scale < 3 or shape[0] < 1000 else 1


def table(shapes: tuple[tuple[int, int, int], ...], rounds: int) -> Iterator[str]:
    """Yields the lines of a Markdown table."""
    yield "| picture | scale | imresize | loop | times as fast |"
    yield "|---|---|---|---|---|"
    for shape in shapes:
        for name, scale in SCALES.items():
            timing = measure(shape, scale, rounds_of(shape, scale, rounds))
            yield (
                f"| {shape[1]} x {shape[0]} | {name} | {timing.ours * 1e3:.1f} ms | {timing.loop * 1e3:.0f} ms "
                f"| {timing.ratio:.1f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small picture alone, three rounds")
    quick = parser.parse_args().quick
    for line in table(SHAPES[:1] if quick else SHAPES, 3 if quick else 5):
        print(line, flush=True)


if __name__ == "__main__":
    main()
