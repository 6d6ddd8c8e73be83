"""What the network makes of the first validation pictures, kept at each evaluation: progress to look at."""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densekit.config import Config
from densekit.files import atomic_write
from densekit.predict.compare import GAP, Cell, sheet
from densekit.predict.overlay import PALETTE, RGB, overlay
from densekit.resize import imresize
from densekit.tasks import Sample

Pixels = NDArray[np.uint8]
SIDE = 512  # pixels, of one picture on a sheet
QUALITY = 90  # of WebP


def keep_samples(samples: Iterable[Sample], config: Config, folder: Path, step: int) -> dict[str, Pixels]:
    """Writes a sheet of each sample to `folder`/step-N/NAME.webp; returns them by NAME. Those of older steps stay.

    Raises:
        OSError: it cannot be written.
    """
    sheets: dict[str, Pixels] = {}
    place = folder / f"step-{step:08d}"
    for sample in samples:
        place.mkdir(parents=True, exist_ok=True)
        for leftover in place.glob(".*.tmp*"):
            leftover.unlink()  # of a process that was killed inside a write
        stem = sample.path.stem
        name = stem if stem not in sheets else f"{stem}-{len(sheets) + 1}"  # of equal names in two folders
        sheets[name] = draw(sample, config, step)
        buffer = io.BytesIO()
        Image.fromarray(sheets[name]).save(buffer, "WEBP", quality=QUALITY, method=2)
        atomic_write(place / f"{name}.webp", buffer.getvalue())
    return sheets


def draw(sample: Sample, config: Config, step: int) -> Pixels:
    """Returns three labelled pictures side by side, (H, 1568, 3): what there was, the result, and what it should be.

    sr: bicubic, result and original; of larger pictures the middle `SIDE` pixels, since reduced ones would hide what a
    network adds. seg: image, prediction and truth drawn over it, with legends; longer sides are reduced to `SIDE`.
    """
    if config.task == "sr":
        scale = sample.result.shape[0] // sample.given.shape[0]
        views = [middle(pixels) for pixels in (imresize(sample.given, scale), sample.result, sample.truth)]
    else:
        views = drawn_over(sample, config)
    first, last = ("bicubic", "original") if config.task == "sr" else ("image", "truth")
    labels = (first, f"{'result' if config.task == 'sr' else 'prediction'}, step {step}", last)
    cells = [Cell(label, Image.fromarray(pixels)) for label, pixels in zip(labels, views, strict=True)]
    return sheet([cells], 3 * SIDE + 4 * GAP)


def middle(pixels: Pixels) -> Pixels:
    """Returns the middle of a picture, at most `SIDE` pixels each way."""
    top, left = (max(0, size - SIDE) // 2 for size in pixels.shape[:2])
    return pixels[top : top + SIDE, left : left + SIDE]


def drawn_over(sample: Sample, config: Config) -> list[Pixels]:
    """Returns a picture, and it with the predicted and the true classes drawn over it; long sides reduced to `SIDE`."""
    names, palette = classes_of(config)
    height, width = sample.truth.shape
    factor = min(1, SIDE / max(height, width))
    size = (max(1, round(factor * width)), max(1, round(factor * height)))
    image = np.asarray(Image.fromarray(sample.given).resize(size, Image.Resampling.BOX))
    layers = [Image.fromarray(ids).resize(size, Image.Resampling.NEAREST) for ids in (sample.result, sample.truth)]
    return [image, *(overlay(image, np.asarray(ids), names, palette) for ids in layers)]


def classes_of(config: Config) -> tuple[list[str], list[RGB]]:
    """Returns the names of a segmentation's classes and their colours, numbers and `PALETTE` where it has none."""
    count = max(2, config.model.kwargs["num_classes"])
    colours = [(r, g, b) for r, g, b in config.data.palette] or list(islice(cycle(PALETTE), count))
    return config.data.classes or [f"class {index}" for index in range(count)], colours
