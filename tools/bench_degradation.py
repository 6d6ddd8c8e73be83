"""What the degradation for blind super-resolution costs, and what it does to pictures.

python -m tools.bench_degradation [FOLDER] [--crops N] [--basicsr FOLDER]

Crops of 256x256 of the photographs in FOLDER are degraded by 4, on one thread, in CPU time; then JPEG alone, beside
kornia's codec and files of the same quality. With --basicsr, the unpacked source of BasicSR 1.4.2, the program that
Real-ESRGAN trained with takes its turn at each crop: the steps of its model on its own kernels, noise and JPEG.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from kornia.enhance import jpeg_codec_differentiable
from PIL import Image
from torch import Tensor

from densekit.datasets.degradation import degrade
from densekit.datasets.degradation.jpeg import jpeg
from densekit.datasets.pairs import make_pair, to_chw
from densekit.datasets.pictures import Pixels, list_pictures, read_rgb
from tools.peer_degradation import load_peer

SIZE, SCALE = 256, 4
Degrade = Callable[[Tensor, int], Tensor]  # picture and seed -> low resolution


def crops_of(folder: str, count: int) -> list[Pixels]:
    """Returns crops of 256x256 of as many pictures, from the first again when they run out."""
    pictures = [read_rgb(path) for path in list_pictures([folder])[:count]]
    large = [picture for picture in pictures if min(picture.shape[:2]) >= SIZE]
    if not large:
        raise SystemExit(f"{folder}: no picture is {SIZE}x{SIZE}")
    return [large[i % len(large)][:SIZE, :SIZE] for i in range(count)]


def to_tensor(pixels: Pixels) -> Tensor:
    return to_chw(pixels)[None].float() / 255


def psnr(one: Tensor, other: Tensor) -> float:
    return -10 * math.log10(float((one - other).square().mean()) + 1e-12)


def shift(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Returns by how many pixels (down, right) `other` is moved against `one`, by least squares on the gradients."""
    one, other = one[0].mean(0).double(), other[0].mean(0).double()
    down, right = (one[2:, 1:-1] - one[:-2, 1:-1]) / 2, (one[1:-1, 2:] - one[1:-1, :-2]) / 2
    gradients = torch.stack([down.flatten(), right.flatten()], 1)
    found = torch.linalg.lstsq(gradients, (one - other)[1:-1, 1:-1].reshape(-1, 1)).solution
    return float(found[0]), float(found[1])


def compare(crops: list[Pixels], ways: dict[str, Degrade]) -> None:
    """Prints a row for each way: its speed, and how its results differ from bicubic reductions."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for seed, hr in enumerate(crops):
        low, x = to_tensor(make_pair(hr, SCALE)[0]), to_tensor(hr)
        for name, way in ways.items():
            began = time.process_time()
            y = way(x, seed)
            seconds = time.process_time() - began
            found[name].append((seconds, psnr(y, low), 255 * float((y - low).mean()), *shift(low, y)))
    print(
        "| degradation | crops/s | PSNR against bicubic, dB | level shift, of 255 | place shift down, right, pixels |"
    )
    print("|---|---|---|---|---|")
    for name, rows in found.items():
        values = np.array(rows)
        mean, error = values.mean(0), values.std(0) / math.sqrt(len(values))
        print(
            f"| {name} | {1 / np.median(values[:, 0]):.0f} | {mean[1]:.2f} ± {error[1]:.2f} "
            f"| {mean[2]:+.2f} ± {error[2]:.2f} | {mean[3]:+.3f}, {mean[4]:+.3f} ± {error[3:].max():.3f} |"
        )


def compare_jpeg(crops: list[Pixels], quality: int) -> None:
    """Prints for ours and kornia's how far from a file of the same quality they are, and the time they take."""
    rows: dict[str, list[tuple[float, float, float]]] = {"ours": [], "kornia": []}
    for hr in crops:
        buffer = io.BytesIO()
        Image.fromarray(hr).save(buffer, "JPEG", quality=quality)
        file, x = to_tensor(np.array(Image.open(buffer))), to_tensor(hr)
        for name in rows:
            began = time.process_time()
            y = jpeg(x, quality) if name == "ours" else jpeg_codec_differentiable(x, torch.tensor([float(quality)]))
            rows[name].append((time.process_time() - began, psnr(y, x) - psnr(file, x), psnr(y, file)))
    for name, values in rows.items():
        seconds, nearer, apart = np.median(values, 0)
        print(
            f"JPEG {quality}, {name}: {1e3 * seconds:.1f} ms, {nearer:+.2f} dB nearer to the picture than a file, "
            f"{apart:.1f} dB from the file"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="data/bsds400/images", metavar="FOLDER")
    parser.add_argument("--crops", type=int, default=200)
    parser.add_argument("--basicsr", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    crops = crops_of(options.folder, options.crops)
    ways: dict[str, Degrade] = {"densekit": lambda x, seed: degrade(x, SCALE, [seed])}
    if options.basicsr:
        ways["BasicSR"] = load_peer(options.basicsr, SCALE)
    for way in ways.values():
        way(to_tensor(crops[0]), 0)  # the first call loads what the others find ready
    compare(crops, ways)
    for quality in (30, 60, 90):
        compare_jpeg(crops, quality)


if __name__ == "__main__":
    main()
