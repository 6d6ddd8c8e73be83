"""Crops a second from the packed cache beside decoding the PNG for each crop, and what that leaves of a training step.

python -m tools.bench_data [FOLDER] [--size 2040x1356 | --size as-is] [--steps N]

The pictures are mosaics of the photographs in FOLDER at the size of DIV2K's, with the photographs' own detail per
pixel: nothing is enlarged. For each crop the usual way reads a PNG of high resolution and one of low resolution, by
OpenCV, which is the faster decoder, or by Pillow through `densekit.image`. Rounds of each in turn, medians of CPU time;
the files of all are in the system's memory. Then some steps of a config with batches from the cache, and with batches
that are decoded: how much of their time is not spent waiting for a batch, with no loader process to hide the wait.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import cv2
import numpy as np
import torch
from torch import Tensor

from densekit.config import Config, load_config
from densekit.datasets.packed import Source
from densekit.datasets.pairs import Pairs, make_pair
from densekit.datasets.partners import pair_pictures
from densekit.datasets.pictures import Pixels, list_pictures, read_rgb
from densekit.image import Picture, write_image
from densekit.tasks import create_task
from densekit.tasks.common import batches

SCALE, CROP = 2, 48
Decode = Callable[[Path], Pixels]


def decode_opencv(path: Path) -> Pixels:
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


DECODERS: dict[str, Decode] = {"PNG by OpenCV": decode_opencv, "PNG by densekit.image": read_rgb}


class Decoded(Pairs):
    """The same items, but both files of a pair are decoded for each."""

    def __init__(self, sources: Sequence[Source], cache: str, decode: Decode = decode_opencv) -> None:
        super().__init__(sources, SCALE, CROP, seed=0, cache=cache)
        self.sources = sources
        self.decode = decode

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        draw, index = item
        high, low = self.sources[index]
        return self.crop((self.decode(low), self.decode(high)), draw)


def mosaic(photographs: list[Pixels], height: int, width: int) -> Pixels:
    """Returns (height, width, 3) pixels of photographs set side by side, row by row, until it is full."""
    rows: list[Pixels] = []
    while sum(len(row) for row in rows) < height:
        tiles: list[Pixels] = []
        while sum(tile.shape[1] for tile in tiles) < width:
            tiles.append(photographs[0])
            photographs.append(photographs.pop(0))
        least = min(len(tile) for tile in tiles)
        rows.append(np.concatenate([tile[:least] for tile in tiles], 1)[:, :width])
    return np.ascontiguousarray(np.concatenate(rows)[:height])


def write_pairs(folder: Path, photographs: list[Pixels], size: tuple[int, int] | None, count: int) -> list[Source]:
    """Writes HR/ and LR/ as PNG; returns the files of the pairs."""
    for part in ("HR", "LR"):
        (folder / part).mkdir()
    for number in range(count):
        picture = mosaic(photographs, *size) if size else photographs[number % len(photographs)]
        lr, hr = make_pair(picture, SCALE)
        write_image(folder / "HR" / f"{number:04d}.png", Picture(np.ascontiguousarray(hr)))
        write_image(folder / "LR" / f"{number:04d}x{SCALE}.png", Picture(lr))
    return pair_pictures([folder / "HR"], [folder / "LR"], scale=SCALE)


def crops_per_second(sources: Sequence[Source], cache: str, rounds: int, crops: int) -> dict[str, float]:
    """Returns the median rate of each way, by name: "cache", "memory" and those of `DECODERS`.

    All hand out the same items, which is checked. A round of decoding draws each picture once.
    """
    packed = Pairs(sources, SCALE, CROP, seed=0, cache=cache)
    ways: dict[str, tuple[Pairs, int]] = {"cache": (packed, crops)}
    ways["memory"] = (Pairs(sources, SCALE, CROP, seed=0), crops)
    ways |= {name: (Decoded(sources, cache, decode), len(sources)) for name, decode in DECODERS.items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, (data, count) in ways.items():
            began = time.process_time()
            for draw in range(number * crops, number * crops + count):
                data[draw, draw % len(sources)]
            if number:  # the first warms up
                rates[name].append(count / (time.process_time() - began))
            assert all(map(torch.equal, data[number, 0], packed[number, 0]))
    return {name: statistics.median(found) for name, found in rates.items()}


def compute_share(config: Config, data: Pairs, steps: int) -> float:
    """Returns the share of the time of training steps that does not go into waiting for the next batch."""
    task = create_task(config)
    net = task.build_model().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(net.parameters(), 1e-5)
    source: Iterator[tuple[Tensor, Tensor]] = batches(data, config, 0)
    waited = total = 0.0
    for step in range(steps + 1):
        began = time.perf_counter()
        batch = next(source)
        came = time.perf_counter()
        task.loss(net, batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step:  # the first warms up
            waited += came - began
            total += time.perf_counter() - began
    return 1 - waited / total


def step_config(name: str, folder: Path, cache: str, batch_size: int = 16) -> Config:
    """Returns the config whose steps are measured: a shipped one on these pictures, fp32, no loader processes."""
    return load_config(
        name,
        [
            f"data.train={folder / 'HR'}",
            f"data.lr={folder / 'LR'}",
            "data.val=[]",
            f"data.cache={cache}",
            "data.num_workers=0",
            f"train.crop_size={CROP}",
            f"train.batch_size={batch_size}",
        ],
    )


@click.command(help=__doc__)
@click.argument("folder", default="data/bsds400/images", type=click.Path(exists=True, file_okay=False))
@click.option("--size", default="2040x1356", help="Of a picture, WIDTHxHEIGHT, or as-is.")
@click.option("--count", default=8, help="Pictures.")
@click.option("--rounds", default=5, help="Of which the median is taken.")
@click.option("--crops", default=500, help="From the cache in a round.")
@click.option("--steps", default=4, help="Training steps that are measured; 0 for none.")
@click.option("--config", default="sr/rdn_light_x2", help="What is trained.")
def main(folder: str, size: str, count: int, rounds: int, crops: int, steps: int, config: str) -> None:
    cv2.setNumThreads(1)
    photographs = [read_rgb(path) for path in list_pictures([folder])[: 30 * count]]
    sides = None if size == "as-is" else tuple(int(side) for side in reversed(size.split("x")))
    with tempfile.TemporaryDirectory() as scratch:
        place, cache = Path(scratch), f"{scratch}/cache"
        sources = write_pairs(place, photographs, sides, count)
        mean = statistics.mean(path.stat().st_size for source in sources for path in source[:1]) / 1e6
        print(f"{count} pictures of {size} from {folder}, {mean:.1f} MB as PNG; crops of {CROP} at scale {SCALE}\n")
        rates = crops_per_second(sources, cache, rounds, crops)
        print("| crops from | crops/s on one core | cache = 1 |\n|---|---|---|")
        for name, rate in rates.items():
            print(f"| {name} | {rate:.0f} | {rate / rates['cache']:.2g} |")
        if steps:
            training = step_config(config, place, cache)
            shares = {"cache": compute_share(training, create_task(training).data, steps)}
            shares["PNG by OpenCV"] = compute_share(training, Decoded(sources, cache), steps)
            print(
                f"\n| batches of {config} from | share of a step that is compute, {torch.get_num_threads()} threads |"
            )
            print("|---|---|")
            for name, share in shares.items():
                print(f"| {name} | {share:.1%} |")


if __name__ == "__main__":
    main()
