"""Streamed super-resolution beside the whole image at once: time, memory and difference.

python -m tools.bench_stream [--height 540] [--width 960] [--rounds 2] [--threads 1]: an RDN of 8 blocks of 4 layers
(G 32, G0 64, x2), every variant in a process of its own, in turn: CPU seconds of one image (the least of the rounds),
the share that its convolutions would take of that at the speed of a bare one (3x3, 64 channels, channels last, in the
same process afterwards), peak of resident memory above what it was before, and the largest difference from the first
variant in levels of 255. --tile N sets the side of the tiles, --model rdn takes the RDN of 22 million parameters.

python -m tools.bench_stream --megapixels 100 [--width 10000]: `densekit sr predict` with the embedded x4 model on a
TIFF of that many pixels, result in a TIFF: peak of resident memory, seconds, size of the result.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor, nn

from densekit import create_model
from densekit.blocks import optimize
from densekit.cli.process import tune_allocator
from densekit.predict.upscale import FAST_TILE
from densekit.tiling import Tiles
from tools.bench.clock import conv_action, measure_cpu, middle
from tools.bench.networks import count_flops

CEILING_ROUNDS = 9
LIGHT = {"num_blocks": 8, "num_layers": 4, "growth_rate": 32, "num_features": 64}
COMMAND = """
import sys
from densekit.cli import main
from tools.bench_stream import resident
code = main(sys.argv[1:])
print(resident("VmHWM"))
sys.exit(code)
"""
VARIANTS = {
    "whole image, eager": ("whole", "plain", ""),
    "whole image, channels last": ("whole", "nhwc", ""),
    "whole image, optimised": ("whole", "optimised", ""),
    "streamed, channels last": ("streamed", "nhwc", ""),
    "streamed, optimised": ("streamed", "optimised", ""),
    "whole image, eager, allocator keeps pages": ("whole", "plain", "keep"),
    "streamed, optimised, allocator keeps pages": ("streamed", "optimised", "keep"),
}


def resident(field: str) -> int:
    """Returns bytes of this process that are in memory now (VmRSS) or were at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


def runner(net: nn.Module, way: str, form: str, tile: int) -> Callable[[Tensor], Tensor]:
    """Returns what enlarges an image."""
    if form == "plain":
        return net
    net = optimize(net) if form == "optimised" else net.to(memory_format=torch.channels_last)
    run = net if way == "whole" else lambda x: net.stream(x, Tiles(tile))
    return lambda x: run(x.contiguous(memory_format=torch.channels_last))


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> None:
    """Prints what one variant takes for one image, and saves its result."""
    way, form, pages = VARIANTS[arguments.variant]
    if pages:
        tune_allocator()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    net = create_model("rdn", scale=2, **({} if arguments.model == "rdn" else LIGHT)).eval().requires_grad_(False)
    flops = count_flops(net, (1, 3, arguments.height, arguments.width))
    run = runner(net, way, form, arguments.tile)
    run(torch.rand(1, 3, 32, 48))
    x = torch.rand(1, 3, arguments.height, arguments.width)
    before, began = resident("VmRSS"), time.process_time()
    y = run(x)
    seconds, peak = time.process_time() - began, resident("VmHWM") - before
    bare, work = conv_action("cpu", torch.float32)
    least = flops / work * middle(measure_cpu(bare) for _ in range(CEILING_ROUNDS))
    print(json.dumps({"seconds": seconds, "bytes": peak, "least": least}))
    np.save(arguments.result, y.contiguous().numpy())


def compare(arguments: argparse.Namespace) -> None:
    """Prints a table of all variants."""
    chosen = [name for name in VARIANTS if not arguments.only or any(text in name for text in arguments.only)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    images: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "y.npy")
        for _ in range(arguments.rounds):
            for name in chosen:
                command = [sys.executable, "-m", "tools.bench_stream", *sys.argv[1:], "--variant", name]
                done = subprocess.run([*command, "--result", path], capture_output=True, text=True, check=True)
                found[name].append(json.loads(done.stdout))
                images[name] = np.load(path)
    first = found[chosen[0]]
    print(f"{arguments.model}, {arguments.height}x{arguments.width} x2, {arguments.threads} threads\n")
    print("| | CPU s | times as fast | of the ceiling | MB over base | as a part | levels of 255 |")
    print("|---" * 7 + "|")
    for name in chosen:
        seconds, size = (min(run[key] for run in found[name]) for key in ("seconds", "bytes"))
        faster = min(run["seconds"] for run in first) / seconds
        smaller = min(run["bytes"] for run in first) / size
        share = max(run["least"] / run["seconds"] for run in found[name])
        differs = 255 * np.abs(images[name] - images[chosen[0]]).max()
        figures = f"{seconds:.1f} | {faster:.2f} | {share:.2f} | {size / 1e6:.0f} | 1/{smaller:.1f} | {differs:.5f}"
        print(f"| {name} | {figures} |", flush=True)


def enlarge_huge(arguments: argparse.Namespace) -> None:
    """Prints what the command takes for a picture of many pixels."""
    width, height = arguments.width, round(arguments.megapixels * 1e6 / arguments.width)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, target = Path(folder, "a.tif"), Path(folder, "a_x4.tif")
        block = np.random.default_rng(0).integers(0, 256, (100, width, 3), np.uint8)
        shape = (height, width, 3)
        rows = (block for _ in range(-(-height // 100)))
        tifffile.imwrite(source, rows, shape=shape, dtype=np.uint8, photometric="rgb", rowsperstrip=100)
        began = time.monotonic()
        command = [sys.executable, "-c", COMMAND, "sr", "predict", source, "-o", target, "-m", "rdn-tiny-x4"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
        seconds = time.monotonic() - began
        with tifffile.TiffFile(target) as tiff:
            size, is_big = tiff.pages.first.shape, tiff.is_bigtiff
        print(f"{width}x{height} -> {size[1]}x{size[0]}, {target.stat().st_size / 1e9:.2f} GB, BigTIFF: {is_big}")
        print(f"peak {int(done.stdout.split()[-1]) / 1e9:.2f} GB, {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["rdn-light", "rdn"], default="rdn-light")
    parser.add_argument("--height", type=int, default=540)
    parser.add_argument("--width", type=int, help="[default: 960; 10000 with --megapixels]")
    parser.add_argument("--tile", type=int, default=FAST_TILE)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="parts of the names of the variants to run")
    parser.add_argument("--megapixels", type=float)
    parser.add_argument("--folder", help="for the files of --megapixels")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.width = arguments.width or (10_000 if arguments.megapixels else 960)
    if arguments.variant:
        measure(arguments)
    elif arguments.megapixels:
        enlarge_huge(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
