"""Receptive fields, from the layers that a network is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction


def radius(steps: Iterable[tuple[int, Fraction | int]]) -> int:
    """Returns how far an output pixel sees, in input pixels to each side, rounded up.

    Args:
        steps: for every operation on the longest path (its radius in pixels of its own grid, that grid's resolution
            relative to the input: 1 at the input's size, 1/2 after one halving, 2 after one doubling).

    A convolution k x k with dilation d has radius d (k - 1) / 2. Pooling 2x2 sees one pixel beyond its own on its
    input's grid, pixel unshuffle by r sees r - 1. A transposed convolution with kernel k and padding p has radius
    max(p, k - 1 - p) on its output's grid: 3x3 with stride 2 and no padding, two pixels there and one on its input's.
    """
    return math.ceil(sum(Fraction(r) / Fraction(resolution) for r, resolution in steps))
