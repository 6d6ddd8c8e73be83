"""Draws the pictures in data/samples. `python -m tools.make_samples`

Nothing in them is photographed or copied, so they may go anywhere; equal programs draw equal pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).parents[1] / "data" / "samples"
Array = NDArray[Any]


def coverage(distance: Array) -> Array:
    """Returns how much of each pixel (0..1) a shape covers, from the signed distance to its edge, negative inside."""
    return np.clip(0.5 - distance, 0, 1)


def disc(x: Array, y: Array, center: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> Array:
    """Returns the coverage of an ellipse; center and radii in pixels, angle in radians."""
    dx, dy = x - center[0], y - center[1]
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / radii[0]
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / radii[1]
    return coverage((np.hypot(u, v) - 1) * min(radii))


def box(x: Array, y: Array, left: float, top: float, right: float, bottom: float) -> Array:
    """Returns the coverage of a rectangle; edges in pixels."""
    across, down = (
        np.abs(x - (left + right) / 2) - (right - left) / 2,
        np.abs(y - (top + bottom) / 2) - (bottom - top) / 2,
    )
    return coverage(np.maximum(across, down))


def paint(picture: Array, shape: Array, color: tuple[int, int, int]) -> None:
    """Lays a colour over (H, W, 3) `picture` where `shape` (H, W) covers it."""
    picture += shape[..., None] * (np.array(color, float) - picture)


def to_bytes(picture: Array) -> NDArray[np.uint8]:
    """Returns values in 0..255 rounded to uint8."""
    return np.floor(np.clip(picture, 0, 255) + 0.5).astype(np.uint8)


def draw_street(height: int = 144, width: int = 192) -> NDArray[np.uint8]:
    """Returns (height, width, 3) uint8: sky, houses with windows, a tree, a road with markings, a car."""
    y, x = np.mgrid[:height, :width] + 0.5
    rng = np.random.default_rng(1)
    picture = np.stack([120 + 0.5 * y, 160 + 0.4 * y, 215 + 0.1 * y], axis=-1)
    horizon = 92
    for left, right, top, color in (
        (0, 48, 30, (150, 96, 78)),
        (48, 86, 48, (176, 160, 136)),
        (140, 192, 22, (128, 120, 124)),
    ):
        paint(picture, box(x, y, left, top, right, horizon + 6), color)
        for row in range(top + 7, horizon - 8, 15):
            for column in range(left + 6, right - 7, 12):
                paint(picture, box(x, y, column, row, column + 6, row + 9), (52, 62, 84))
                paint(picture, box(x, y, column, row, column + 6, row + 1), (232, 228, 214))
    paint(picture, box(x, y, 111, 62, 115, horizon + 6), (84, 62, 44))
    for _ in range(40):
        away, angle = 17 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        center = (113 + away * np.cos(angle), 50 + away * np.sin(angle))
        shade = int(rng.integers(-18, 19))
        paint(picture, disc(x, y, center, (5, 4)), (58 + shade, 112 + shade, 48 + shade))
    paint(picture, coverage(horizon + 4 - y), (168, 164, 156))  # pavement
    road = coverage(np.maximum(horizon + 8 - y, np.abs(x - 96) - 60 - 1.6 * (y - horizon)))
    paint(picture, road, (88, 88, 94))
    for start, end in ((104, 109), (115, 123), (131, 143)):
        paint(picture, box(x, y, 96 - (start - 90) / 12, start, 96 + (start - 90) / 12, end), (236, 232, 214))
    paint(picture, box(x, y, 116, 106, 158, 121), (176, 32, 38))
    paint(picture, box(x, y, 124, 96, 150, 108), (176, 32, 38))
    paint(picture, box(x, y, 127, 99, 136, 106), (186, 214, 230))
    paint(picture, box(x, y, 138, 99, 147, 106), (186, 214, 230))
    for wheel in (125, 149):
        paint(picture, disc(x, y, (wheel, 121), (5, 5)), (28, 28, 30))
        paint(picture, disc(x, y, (wheel, 121), (2, 2)), (190, 190, 194))
    grain = rng.normal(0, 2.5, (height, width, 1)) * (1 + 2 * road[..., None])
    return to_bytes(picture + grain)


def draw_nuclei(size: int = 256) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns a picture (size, size, 3) uint8 of bright nuclei on black, and its ids (size, size) uint8: 1 in them."""
    y, x = np.mgrid[:size, :size] + 0.5
    rng = np.random.default_rng(2)
    picture, ids = np.full((size, size), 9.0), np.zeros((size, size), np.uint8)
    placed: list[tuple[float, float, float]] = []
    while len(placed) < 34:
        cx, cy, radius = *rng.uniform(0, size, 2), rng.uniform(7, 13)
        if any(np.hypot(cx - px, cy - py) < radius + other + 1 for px, py, other in placed):
            continue
        placed.append((cx, cy, radius))
        shape = disc(x, y, (cx, cy), (radius, radius * rng.uniform(0.7, 1)), rng.uniform(0, np.pi))
        texture = 1 + 0.12 * np.sin(x * rng.uniform(0.5, 0.9)) * np.sin(y * rng.uniform(0.5, 0.9))
        picture += shape * rng.uniform(50, 130) * texture
        ids[shape > 0.5] = 1
    soft = np.pad(picture, 1, mode="edge")
    soft = (soft[:-2] + 2 * soft[1:-1] + soft[2:]) / 4
    soft = (soft[:, :-2] + 2 * soft[:, 1:-1] + soft[:, 2:]) / 4
    grey = to_bytes(soft + rng.normal(0, 1.5, soft.shape))
    return np.repeat(grey[..., None], 3, axis=-1), ids


def draw_all() -> dict[str, NDArray[np.uint8]]:
    """Returns every sample by its file name."""
    nuclei, ids = draw_nuclei()
    return {"street.png": draw_street(), "nuclei.png": nuclei, "nuclei_mask.png": ids}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, pixels in draw_all().items():
        Image.fromarray(pixels).save(FOLDER / name, optimize=True)
        print(FOLDER / name)


if __name__ == "__main__":
    main()
