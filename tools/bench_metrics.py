"""Prints how fast segmentation figures are taken, as a Markdown table. `python -m tools.bench_metrics`

Ours and others run on one thread, in turn, on the same masks; times are processor seconds, so a busy machine counts
less, and each figure is the median of the rounds. Others that are not installed are left out, and a line says so.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from densekit.metrics import BoundaryF1, BoundaryIoU, Calibration, ConfusionMatrix, softmax

HEIGHT, WIDTH, VOID = 360, 480, 255
Masks = NDArray[np.uint8]


def draw_masks(num_classes: int, number: int) -> tuple[Masks, Masks]:
    """Returns (prediction, target), (number, 360, 480): round patches with 4 % void, outlines a few pixels apart."""
    rng = np.random.default_rng(0)
    pictures = np.zeros((number, HEIGHT, WIDTH), np.uint8)
    for picture in pictures:
        for _ in range(60):
            centre = int(rng.integers(WIDTH)), int(rng.integers(HEIGHT))
            cv2.circle(picture, centre, int(rng.integers(10, 60)), int(rng.integers(num_classes)), thickness=-1)
    target = np.roll(pictures, (2, 3), axis=(1, 2))
    target[:, :, :19] = VOID
    return pictures, target


def peers(prediction: Masks, target: Masks, num_classes: int) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yields the name of each way to the mean IoU and a function that goes it, ours first."""

    def ours() -> float:
        matrix = ConfusionMatrix(num_classes, VOID)
        matrix.update(prediction, target)
        return matrix.miou()

    def masked_bincount() -> float:  # the usual lines, from FCN's code on
        kept = target < num_classes
        code = num_classes * target[kept].astype(int) + prediction[kept]
        matrix = np.bincount(code, minlength=num_classes**2).reshape(num_classes, num_classes)
        hits = matrix.diagonal()
        return float(np.nanmean(hits / (matrix.sum(0) + matrix.sum(1) - hits)))

    found, truth = torch.from_numpy(prediction).long(), torch.from_numpy(target).long()

    def histograms() -> float:  # as mmsegmentation counts: three histograms of masked tensors
        kept = truth != VOID
        labels = truth[kept], found[kept]
        both = labels[0][labels[0] == labels[1]]
        hits, one, other = (
            torch.histc(values.float(), bins=num_classes, min=0, max=num_classes - 1) for values in (both, *labels)
        )
        return float((hits / (one + other - hits)).mean())

    yield "densekit `ConfusionMatrix`", ours
    yield "NumPy, masked `bincount`", masked_bincount
    yield "three `torch.histc`, as mmsegmentation", histograms
    try:
        import segmentation_models_pytorch.metrics as smp

        def stats() -> float:
            counts = smp.get_stats(found, truth, mode="multiclass", num_classes=num_classes, ignore_index=VOID)
            hits, false, missed, _ = (part.sum(0) for part in counts)
            return float((hits / (hits + false + missed)).mean())

        yield "segmentation_models_pytorch `get_stats`", stats
    except ImportError:
        print("segmentation_models_pytorch is not installed: left out")
    try:
        from torchmetrics.classification import MulticlassJaccardIndex

        def index() -> float:
            metric = MulticlassJaccardIndex(num_classes, ignore_index=VOID)
            metric.update(found, truth)
            return float(metric.compute())

        yield "torchmetrics `MulticlassJaccardIndex`", index
    except ImportError:
        print("torchmetrics is not installed: left out")


def own(prediction: Masks, target: Masks, num_classes: int) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yields the name of each of our other figures and a function that takes it."""

    def boundary_iou() -> float:
        meter = BoundaryIoU(num_classes, VOID)
        meter.update(prediction, target)
        return meter.miou()

    def boundary_f1() -> float:
        meter = BoundaryF1(num_classes, VOID)
        meter.update(prediction, target)
        return meter.mean_f1()

    scores = softmax(np.random.default_rng(0).normal(0, 2, (num_classes, HEIGHT, WIDTH))).astype(np.float32)

    def calibration() -> float:
        meter = Calibration(num_classes, VOID)
        for labels in target:
            meter.update(scores, labels)
        return meter.ece()

    yield "densekit `BoundaryIoU`, 2 % of the diagonal", boundary_iou
    yield "densekit `BoundaryF1`, 0.75 % of the diagonal", boundary_f1
    yield "densekit `Calibration`, float32", calibration


def measure(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Returns the median processor seconds of each, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=16, help="360x480 masks counted at once")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")  # of what the others import
    for num_classes in (11, 19):
        masks = draw_masks(num_classes, options.pictures)
        same = dict(peers(*masks, num_classes))
        figures = {name: way() for name, way in same.items()}  # and a first round that is not timed
        assert max(figures.values()) - min(figures.values()) < 1e-5, figures
        ways = {**same, **dict(own(*masks, num_classes))}
        seconds = measure(ways, options.rounds)
        first = next(iter(seconds.values()))
        print(f"\n{options.pictures} masks of {HEIGHT}x{WIDTH}, {num_classes} classes, one thread\n")
        print("| figure | Mpx/s | time, ours = 1 |\n|---|---|---|")
        for name, taken in seconds.items():
            relative = f"{taken / first:.1f}" if name in same else ""
            print(f"| {name} | {masks[0].size / max(taken, 1e-9) / 1e6:.1f} | {relative} |")


if __name__ == "__main__":
    main()
