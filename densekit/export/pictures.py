"""The images that an exported graph is tried with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densekit.datasets.pictures import list_pictures, read_rgb
from densekit.runtimes import Graph

Images = NDArray[np.uint8]

SIZES = ((1, 17, 23), (3, 64, 41), (1, 100, 160), (1, 300, 512))  # images, height, width
LARGEST = 512  # side to which given pictures are cut, about their middle
COUNT = 16  # given pictures that are compared


def samples(
    graph: Graph, pictures: Sequence[str | Path] = (), sizes: Sequence[tuple[int, int, int]] = SIZES
) -> Iterator[Images]:
    """Yields images (B, H, W, C) of random, drawn and given pictures, in sizes that the graph takes."""
    random = np.random.default_rng(0)
    for number, height, width in sizes:
        yield fit(random.integers(0, 256, (number, height, width, graph.in_channels), np.uint8), graph)
        yield fit(np.repeat(draw(height, width)[None], number, 0), graph)
    for path in list_pictures([str(folder) for folder in pictures])[:COUNT] if pictures else ():
        yield fit(cut(read_rgb(path), LARGEST)[None], graph)


def fit(images: Images, graph: Graph) -> Images:
    """Returns images with the channels and in a size that a graph takes: repeated and cut where it does not."""
    images = with_channels(images, graph.in_channels)
    if graph.any_size:
        return images
    sides = [max(graph.min_size, side // graph.multiple_of * graph.multiple_of) for side in images.shape[1:3]]
    rows, columns = (np.arange(side) % given for side, given in zip(sides, images.shape[1:3], strict=True))
    return np.ascontiguousarray(images[:, rows][:, :, columns])


def with_channels(images: Images, channels: int) -> Images:
    """Returns images (..., C) with so many channels: their mean, repeated, where they have others."""
    if images.shape[-1] == channels:
        return images
    return images.mean(-1, keepdims=True).round().astype(np.uint8).repeat(channels, -1)


def cut(pixels: Images, side: int) -> Images:
    """Returns the middle of a picture (H, W, C), at most `side` each way."""
    top, left = (max(0, length - side) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def draw(height: int, width: int) -> Images:
    """Returns a picture (H, W, 3) with what photographs have: shades, edges of every direction, fine lines, texture."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    radius = np.hypot(y - height / 2, x - width / 3)
    shade = 0.5 + 0.4 * np.sin(x / 19) * np.cos(y / 31)
    rings = 0.5 + 0.5 * np.sign(np.sin(radius / 4))
    lines = ((x + 2 * y) % 11 < 2).astype(np.float64)
    texture = np.random.default_rng(1).random((height, width))
    planes = (shade, 0.6 * shade + 0.4 * rings, 0.7 * shade + 0.2 * lines + 0.1 * texture)
    return np.stack([np.clip(plane * 255 + 0.5, 0, 255) for plane in planes], -1).astype(np.uint8)
