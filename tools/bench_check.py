"""Masks a second of `densekit seg check` on one core, decoding included, beside what decoding alone takes.

python -m tools.bench_check [FOLDER of masks] [--count N]: without a folder, drawn 480x360 masks of 11 classes. CPU time
of this process, rounds of each in turn, medians: on a busy machine use the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from densekit.cli.process import tune_allocator
from densekit.datasets.checks.labels import Labels, scan_mask
from densekit.image import list_images, read_mask, write_mask


def draw_masks(folder: Path, count: int) -> None:
    """Writes masks of 480x360 as a street shows: large regions, poles, and a few thousand changes a mask."""
    for number in range(count):
        rng = np.random.default_rng(number)
        ids = np.zeros((360, 480), np.uint8)
        for label in range(60):
            centre = (int(rng.integers(480)), int(rng.integers(360)))
            sides = (int(rng.integers(4, 120)), int(rng.integers(4, 120)))
            cv2.ellipse(ids, centre, sides, float(rng.integers(180)), 0, 360, label % 12, -1)
        ids ^= rng.random(ids.shape) < 0.002
        write_mask(folder / f"{number:04d}.png", ids)


def decode_alone(path: Path) -> None:
    cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


def read_and_count(path: Path) -> None:
    """What the check would do without its short way."""
    np.unique(read_mask(path), return_counts=True)


def measure(function: Callable[[Path], object], paths: list[Path]) -> float:
    """Returns CPU seconds a mask."""
    began = time.process_time()
    for path in paths:
        function(path)
    return (time.process_time() - began) / len(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=200, help="masks that are measured")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    tune_allocator()  # as the command does
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        if not arguments.folder:
            draw_masks(folder, arguments.count)
        paths = list_images(folder)[: arguments.count]
        first = scan_mask(paths[0])
        assert isinstance(first, Labels), first
        ways = {"scan_mask": scan_mask, "cv2.imdecode alone": decode_alone, "read_mask and np.unique": read_and_count}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, function in ways.items():
                times[name].append(measure(function, paths))
    print(f"{len(paths)} masks, {first.size[1]}x{first.size[0]} and alike, {arguments.rounds} rounds, one core")
    base = statistics.median(times["scan_mask"])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        rate = f"{1 / middle:8.0f} masks/s   best {1 / min(seconds):8.0f}"
        print(f"{name:24s} {rate}   x{base / middle:.2f} as fast as scan_mask")


if __name__ == "__main__":
    main()
